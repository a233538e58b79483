"""The pages in `docs/`: navigation, links, the list of public names, and the generated pages."""

from __future__ import annotations

import re
import runpy
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import bert_snli
import conversion
from bert_snli.cli import COMMANDS, TRAINING
from bert_snli.recipes import RECIPES
from bert_snli.training.arguments import FinetuneArguments, PretrainArguments
from tests.support.docs import DOCS, PAGES, code_blocks
from tests.support.processes import REPOSITORY

HOOKS = runpy.run_path(str(DOCS / "site_hooks.py"))
CHECKED = [*(REPOSITORY / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")), *PAGES.values()]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)")


def pages_of(navigation: list | dict | str) -> list[str]:
    """Return the pages of a part of `nav` in mkdocs.yml."""
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for part in parts for page in pages_of(part)]


def anchors_of(path: Path) -> set[str]:
    """Return the anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_navigation_once():
    navigation = pages_of(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(navigation) == sorted([*PAGES, *HOOKS["GENERATED_PAGES"]])


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_links_lead_to_files_and_headings_that_exist(path: Path):
    for target, anchor in LINK.findall(path.read_text(encoding="utf-8")):
        if target.removeprefix("../") in HOOKS["GENERATED_PAGES"]:
            continue
        linked = (path.parent / target).resolve() if target else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors_of(linked), f"{target}#{anchor}"


def test_python_page_lists_every_public_name_once():
    names = re.findall(r"^::: (?:bert_snli|conversion)\.[\w.]*?(\w+)$", PAGES["reference/python.md"].read_text(), re.M)
    public = [name for package in (bert_snli, conversion) for name in package.__all__ if name != "__version__"]
    assert sorted(names) == sorted(public)


def test_python_page_names_the_module_that_defines_each_name():
    for path in re.findall(r"^::: (\S+)$", PAGES["reference/python.md"].read_text(), re.MULTILINE):
        module, _, name = path.rpartition(".")
        package = conversion if module.startswith("conversion") else bert_snli
        assert getattr(package, name).__module__ == module


def test_cli_page_has_the_help_of_every_command():
    page = HOOKS["make_cli_page"]()
    for command in (*TRAINING, *COMMANDS):
        assert f"## bert-snli {command}\n\n```text\nusage: bert-snli {command}" in page


def test_configuration_page_has_every_option_and_recipe():
    page = HOOKS["make_configuration_page"]()
    for arguments_class in (FinetuneArguments, PretrainArguments):
        assert all(f"| `{entry.name}` | " in page for entry in fields(arguments_class))
    assert "| `learning_rate` | float | `0.001` | Peak learning rate. |" in page
    assert all(f"### {name}\n" in page for name in RECIPES)


def test_link_to_a_file_outside_docs_becomes_a_link_to_its_copy():
    class Page:
        class file:
            src_uri = "guide/share.md"

    markdown = "[code](../../bert_snli/hub.py) [page](../faq.md)"
    expected = "[code](../source/bert_snli/hub.py) [page](../faq.md)"
    assert HOOKS["on_page_markdown"](markdown, Page, None, None) == expected


def test_code_blocks_are_found_with_the_reason_why_they_are_not_run(tmp_path: Path):
    page = tmp_path / "page.md"
    not_run = "<!-- not run: {} -->\n```bash\n{}\n```\n\n"
    page.write_text(
        not_run.format("a reason", "a") + "```python\nb\nc\n```\n\n```text\ne\n```\n\n" + not_run.format("another", "d")
    )
    assert code_blocks(page) == [("a reason", "bash", "a\n"), ("", "python", "b\nc\n"), ("another", "bash", "d\n")]
