"""The Python blocks of the page "Use with other libraries", in a process that has not imported `bert_snli`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.clients import import_or_skip
from tests.support.docs import PAGES, code_blocks
from tests.support.without_package import clean_environment

SCRIPT = """
import json, sys

for number, code in enumerate(json.loads(sys.argv[1])):
    exec(compile(code, f"block {number}", "exec"), {"__name__": "__main__"})
"""


def test_code_blocks_of_the_page_run(matching_classifier: Path, tmp_path: Path):
    for package in ("captum", "openvino", "peft", "sentence_transformers", "shap", "torchao"):
        import_or_skip(package)
    shutil.copytree(matching_classifier, tmp_path / "runs" / "snli")
    blocks = [block.code for block in code_blocks(PAGES["guide/clients.md"]) if block.language == "python"]
    blocks.sort(key=lambda code: "bert_snli" in code)  # the others must run without its registrations
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, json.dumps(blocks)],
        cwd=tmp_path,
        env=clean_environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
