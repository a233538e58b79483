"""The examples in the docstrings of the public functions and classes, run in a folder that holds `quickstart/`."""

from __future__ import annotations

import doctest
import inspect
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import bert_snli
import conversion
from tests.support.hub_server import hub_client, running_hub

PUBLIC = {name: getattr(package, name) for package in (bert_snli, conversion) for name in package.__all__}


def examples_of(name: str) -> list[doctest.DocTest]:
    """Return the examples of a public name and of its methods. They see the public names and what they import."""
    found = PUBLIC[name]
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        return []
    return [test for test in doctest.DocTestFinder().find(found, name, globs=PUBLIC) if test.examples]


@pytest.fixture(scope="module")
def quickstart(quickstart_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A working directory with the folder of `bert-snli quickstart`, and a Hub to push to."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("examples")
    shutil.copytree(quickstart_folder, folder / "quickstart")
    os.chdir(folder)
    try:
        with running_hub() as hub, hub_client(hub.endpoint, folder / "home"):
            yield
    finally:
        os.chdir(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PUBLIC if examples_of(name)])
def test_examples_print_what_the_docstring_shows(name: str, quickstart: None):
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in examples_of(name):
        runner.run(test, out=printed.append)
    assert runner.tries > 0 and runner.failures == 0, "".join(printed)


def test_every_public_function_has_an_example():
    functions = {name for name, found in PUBLIC.items() if inspect.isfunction(found)}
    assert {name for name in functions if not examples_of(name)} == set()
