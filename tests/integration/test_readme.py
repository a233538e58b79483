"""README.md: its commands and Python blocks run in order and print what it shows."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bert_snli.cli import main
from tests.support.hub_server import hub_client, running_hub
from tests.support.processes import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
NOT_RUN = {  # command -> reason
    "make demo": "installs packages, then runs bert-snli quickstart, as `quickstart_folder` does",
    "make test": "runs this test",
    "pip install -c constraints.txt -e .": "installs packages",
}


def commands_of(language: str, code: str) -> list[tuple[str, str]]:
    """Return the commands of a block, each with the output that follows it."""
    code = code.replace("\\\n", "")
    if language == "bash":
        return [(line, "") for line in code.splitlines()]
    assert code.startswith("$ "), code
    parts = [part.partition("\n") for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]]
    return [(command, shown) for command, _, shown in parts]


def run_command(command: str, capfd: pytest.CaptureFixture) -> str:
    """Run a command of the README, which must succeed, and return what it prints."""
    if shlex.join(shlex.split(command, comments=True)) in NOT_RUN:
        return ""
    program, *arguments = shlex.split(command, comments=True)
    assert program == "bert-snli", f"{command}: not a command of this package; add it to NOT_RUN"
    if arguments[0] == "serve":
        return serve(arguments)
    capfd.readouterr()
    code = main(arguments)
    printed = "".join(capfd.readouterr())
    assert code == 0, f"{command}\n{printed}"
    return printed


def serve(arguments: list[str]) -> str:
    """Start the web page, stop it with Ctrl-C, and return what it prints."""
    command = [sys.executable, "-m", "bert_snli.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            first_line = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
            return first_line
        finally:
            process.kill()


def assert_prints(source: str, printed: str, shown: str) -> None:
    """Check that each line that the README shows is printed; `...` ends a line or replaces lines.

    Numbers and the width of columns may differ.
    """

    def normalise(line: str) -> str:
        return re.sub(r"\d[\d.,]*(e-\d+)?", "0", " ".join(line.split()))

    lines = [normalise(line) for line in re.split(r"[\n\r]", printed)]
    for line in map(normalise, shown.splitlines()):
        found = any(other.startswith(line[:-3]) for other in lines) if line.endswith("...") else line in lines
        assert found, f"README shows {line!r}, but {source} prints:\n{printed}"


@pytest.mark.slow
def test_commands_and_python_blocks_print_what_the_readme_shows(
    quickstart_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    printed, namespace = "", {}
    shutil.copytree(quickstart_folder, "quickstart")
    with running_hub() as hub, hub_client(hub.endpoint, tmp_path / "home"):
        for language, code in BLOCKS:
            if language == "python":
                capfd.readouterr()
                exec(code, namespace)
                printed = capfd.readouterr().out
            elif language == "text":
                assert_prints("the block before", printed, code)
            else:
                for command, shown in commands_of(language, code):
                    assert_prints(command, run_command(command, capfd), shown)


def test_each_command_that_is_not_run_is_in_the_readme():
    assert [text for text in NOT_RUN if text not in README] == []


def test_blocks_are_in_languages_that_this_test_runs():
    assert {language for language, _ in BLOCKS} == {"bash", "console", "python", "text"}
    assert README.count("```") == 2 * len(BLOCKS)


def test_readme_has_at_most_150_lines_of_120_characters():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []
