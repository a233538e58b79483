"""GitHub's workflows call targets that the Makefile has, and test the Python versions that the package supports."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tests.support.processes import REPOSITORY

WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)
MAKE_COMMAND = re.compile(r"^\s*make ([a-z -]+)$", re.MULTILINE)
PYTHON = "Programming Language :: Python :: "


def read_jobs(workflow: str) -> dict[str, dict[str, Any]]:
    """Return the jobs of a workflow."""
    return yaml.safe_load((REPOSITORY / ".github" / "workflows" / workflow).read_text(encoding="utf-8"))["jobs"]


@pytest.mark.parametrize("workflow", [path.name for path in WORKFLOWS])
def test_make_targets_of_a_workflow_are_in_the_makefile(workflow: str):
    steps = [step for job in read_jobs(workflow).values() for step in job["steps"]]
    commands = [command for step in steps for command in MAKE_COMMAND.findall(step.get("run", ""))]
    called = {target for command in commands for target in command.split()}
    assert called
    assert called <= set(TARGET.findall((REPOSITORY / "Makefile").read_text(encoding="utf-8")))


@pytest.mark.parametrize("workflow", [path.name for path in WORKFLOWS])
def test_actions_of_a_workflow_are_pinned_to_a_major_version(workflow: str):
    steps = [step for job in read_jobs(workflow).values() for step in job["steps"]]
    actions = [step["uses"] for step in steps if "uses" in step]
    assert actions
    assert [action for action in actions if not re.fullmatch(r"actions/[\w-]+@v\d+", action)] == []


def test_tested_python_versions_are_those_that_the_package_supports():
    project = pytest.importorskip("tomllib").loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    matrix = read_jobs("tests.yml")["tests"]["strategy"]["matrix"]
    tested = matrix["python-version"]
    assert [f"{PYTHON}{version}" for version in ["3", *tested]] == [
        classifier for classifier in project["classifiers"] if classifier.startswith(PYTHON)
    ]
    assert SpecifierSet(project["requires-python"]) == SpecifierSet(f">={tested[0]}")
    assert {entry["python-version"] for entry in matrix["include"]} <= set(tested)
