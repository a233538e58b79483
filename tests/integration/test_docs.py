"""The code blocks of the documentation, run page by page in a folder with small models and a small corpus."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from bert_snli.cli import TRAINING, main
from tests.support.docs import PAGES, CodeBlock, code_blocks

SHORT = "--max_steps 2 --max_eval_samples 20".split()
RUN = {page: blocks for page, path in PAGES.items() if (blocks := [b for b in code_blocks(path) if not b.not_run])}


@pytest.fixture
def folder(quickstart_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the models and files that the pages name."""
    quickstart = shutil.copytree(quickstart_folder, tmp_path / "quickstart")
    shutil.copytree(quickstart / "converted", tmp_path / "models" / "small")
    shutil.copytree(quickstart / "finetuned", tmp_path / "runs" / "snli")
    shutil.copytree(quickstart / "mini_snli", tmp_path / "zipped" / "snli_1.0")
    shutil.make_archive(str(tmp_path / "snli_1.0"), "zip", tmp_path / "zipped")
    (tmp_path / "pairs.csv").write_text("premise,hypothesis\nA dog runs.,An animal moves.\nA dog runs.,A cat sleeps.\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_commands(block: CodeBlock) -> None:
    """Run the lines of a shell block, which must be `bert-snli` commands. Trainings are shortened."""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert words[0] == "bert-snli", line
            assert main(words[1:] + (SHORT if words[1] in TRAINING else [])) == 0, line


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_code_blocks_of_a_page_run(page: str, folder: Path):
    names: dict[str, object] = {}
    for block in RUN[page]:
        if block.language == "bash":
            run_commands(block)
        else:
            exec(compile(block.code, page, "exec"), names)
