"""The examples run as they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.elsewhere import bare_environment

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch):
    for name in ("BERT_SNLI_CHECKPOINT", "BERT_SNLI_DATASET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(EXAMPLES / "section_15_7.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    (accuracy,) = re.findall(r"validation acc (\d\.\d+)", said)
    assert float(accuracy) > 0.6  # a third would be chance
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 2


def test_the_notebook_tells_nothing_of_where_it_ran():
    text = (EXAMPLES / "section_15_7.ipynb").read_text(encoding="utf-8")
    assert not re.search(r"/(tmp|home|root|work|Users)/", text)


def test_a_model_is_used_with_transformers_alone(model_folder: Path, tmp_path: Path):
    script = shutil.copy(EXAMPLES / "use_from_the_hub.py", tmp_path)
    done = subprocess.run(
        [sys.executable, script, str(model_folder)],
        cwd=tmp_path,
        env=bare_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    first = lines[1].split()[0]
    assert lines[-1] == first, "the pipeline and the model by hand differ"
