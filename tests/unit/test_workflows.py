"""GitHub's workflows: targets of the Makefile, versions of actions and Python, and the upload of a release to PyPI."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tests.support.processes import REPOSITORY

WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)
MAKE_COMMAND = re.compile(r"^\s*make ([a-z -]+)$", re.MULTILINE)
ACTION = re.compile(r"actions/[\w-]+@v\d+|pypa/gh-action-pypi-publish@release/v1")
(VERSION,) = re.findall(r'^version = "(.*)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
PYTHON = "Programming Language :: Python :: "


def read_workflow(workflow: str) -> dict[Any, Any]:
    """Return the content of a workflow. YAML reads the key `on` as true."""
    return yaml.safe_load((REPOSITORY / ".github" / "workflows" / workflow).read_text(encoding="utf-8"))


def read_jobs(workflow: str) -> dict[str, dict[str, Any]]:
    """Return the jobs of a workflow."""
    return read_workflow(workflow)["jobs"]


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
    assert [action for action in actions if not ACTION.fullmatch(action)] == []


def test_tested_python_versions_are_those_that_the_package_supports():
    project = pytest.importorskip("tomllib").loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    matrix = read_jobs("tests.yml")["tests"]["strategy"]["matrix"]
    tested = matrix["python-version"]
    assert [f"{PYTHON}{version}" for version in ["3", *tested]] == [
        classifier for classifier in project["classifiers"] if classifier.startswith(PYTHON)
    ]
    assert SpecifierSet(project["requires-python"]) == SpecifierSet(f">={tested[0]}")
    assert {entry["python-version"] for entry in matrix["include"]} <= set(tested)


def test_publish_workflow_uploads_what_make_dist_built_and_only_its_upload_may_identify_itself_to_pypi():
    workflow = read_workflow("publish.yml")
    assert workflow[True] == {"release": {"types": ["published"]}}
    assert workflow["permissions"] == {"contents": "read"}
    build, upload = workflow["jobs"].values()
    assert not {"permissions", "environment"} & build.keys()
    assert (upload["needs"], upload["environment"], upload["permissions"]) == ("build", "pypi", {"id-token": "write"})
    assert [step.get("run") for step in build["steps"]][-2] == "make dist"
    stored, (downloaded, published) = build["steps"][-1], upload["steps"]
    assert downloaded["with"] == {"name": stored["with"]["name"], "path": "dist/"}
    assert published == {"uses": "pypa/gh-action-pypi-publish@release/v1"}  # it uploads dist/


@pytest.mark.parametrize(("prefix", "suffix", "accepted"), [("v", "", True), ("", "", True), ("v", ".1", False)])
def test_publish_workflow_refuses_a_tag_of_another_version(prefix: str, suffix: str, accepted: bool):
    (check,) = [step for step in read_jobs("publish.yml")["build"]["steps"] if "GITHUB_REF_NAME" in step.get("run", "")]
    tag = prefix + VERSION + suffix
    done = subprocess.run(["bash", "-c", check["run"]], cwd=REPOSITORY, env={"GITHUB_REF_NAME": tag})
    assert (done.returncode == 0) == accepted


def test_citation_and_changelog_name_the_version_of_the_package():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    newest, date = re.findall(r"^## \[(\d.*)\] - (.*)$", changelog, re.MULTILINE)[0]
    assert (citation["version"], citation["date-released"]) == (newest, date)
    assert newest == VERSION
