"""`make release-model` with the checkpoint and the corpus of `bert-snli quickstart`, and the push of its result."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from bert_snli.cli import main
from tests.support.hub_server import hub_client, running_hub
from tests.support.processes import REPOSITORY
from tests.support.without_package import run_without_package

pytestmark = pytest.mark.slow
STAGED_FILES = {
    *("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("configuration_d2l_bert.py", "modeling_d2l_bert.py", "layers_d2l_bert.py", "nli_pipeline.py"),
    *("pair_truncation.py", "start_conversion_certificate.json", "provenance.md", "recipe.yaml", "metrics.jsonl"),
    *("train_results.json", "curve.png", "eval_results_test.json", "confusion_matrix_test.png"),
    *("onnx/model.onnx", "onnx/model_int8.onnx"),
    *("report/report.md", "report/report.html", "report/report.json", "report/confusion_matrix.png"),
    *("report/reliability.png", "report/slices.png"),
}


class Release(NamedTuple):
    """The output folder of `make release-model`, what the command printed, and a function that runs it again."""

    folder: Path
    printed: str
    make: Callable[..., subprocess.CompletedProcess]

    @property
    def staged(self) -> Path:
        return self.folder / "staged" / "user" / "name"


@pytest.fixture(scope="module")
def release(quickstart_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("release")
    recipe = tmp_path_factory.mktemp("recipe") / "short.yaml"
    recipe.write_text("max_train_samples: 512\nnum_train_epochs: 1\n")

    def make(*arguments: str) -> subprocess.CompletedProcess:
        """Run `make` with the variables of the toy release, in the environment of the tests."""
        environment = Path(sys.executable).parents[1]
        command = [
            "make",
            "--no-print-directory",
            f"VENV={environment}",
            f"--old-file={environment}/dev.stamp",
            f"RELEASE_DIR={folder}",
        ]
        command += [f"BASE={quickstart_folder}/d2l_checkpoint", "CONVERT_OPTIONS=--num_attention_heads 4"]
        return subprocess.run(
            [*command, f"SNLI={quickstart_folder}/mini_snli", f"RECIPE={recipe}", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_MODULES_CACHE": f"{folder}/modules"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )

    done = make("release-model")
    assert done.returncode == 0, done.stdout + done.stderr
    return Release(folder, done.stdout, make)


def modification_times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_release_is_staged_with_all_files_and_loaded_without_the_package(release: Release):
    assert files_of(release.staged).keys() == STAGED_FILES
    assert re.search(r"^\[?\{'label': '(entailment|contradiction|neutral)', 'score': ", release.printed, re.MULTILINE)


def test_second_call_only_prints_the_command_that_uploads(release: Release):
    before = modification_times(release.folder)
    done = release.make("release-model")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "".join(release.printed.splitlines(True)[-2:]))
    assert modification_times(release.folder) == before


def test_another_repo_id_is_staged_without_a_second_training(release: Release):
    planned = release.make("release-model", "--dry-run", "REPO_ID=user/other").stdout
    assert re.findall(r"bert-snli (\w+)", planned) == ["push", "push"]  # the dry run, and the command to upload


def test_other_variables_are_refused_in_an_earlier_release_folder(release: Release):
    done = release.make("release-model", "RECIPE=pooler")
    assert done.returncode == 2 and "give another RELEASE_DIR, or delete it" in done.stderr
    assert "short.yaml" in done.stderr


def test_converted_folder_is_verified_and_copied(release: Release, quickstart_folder: Path, tmp_path: Path):
    converted = quickstart_folder / "converted"
    done = release.make(
        f"{tmp_path}/converted/conversion_certificate.json", f"BASE={converted}", f"RELEASE_DIR={tmp_path}"
    )
    assert done.returncode == 0 and "matches its certificate" in done.stdout, done.stdout + done.stderr
    assert files_of(tmp_path / "converted") == files_of(converted)


RUN_PIPELINE = """
from transformers import pipeline

nli = pipeline("natural-language-inference", "user/name", trust_remote_code=True)
print(json.dumps({entry["label"]: entry["score"] for entry in nli(tuple(arguments["pair"]), top_k=None)}))
"""
RUN_ONNX = """
import contextlib, io

with contextlib.redirect_stdout(io.StringIO()) as out:
    exec(arguments["snippet"])
print(json.dumps(eval(out.getvalue())))
"""


def test_printed_command_pushes_the_staged_folder_and_its_examples_run_from_the_hub(release: Release, tmp_path: Path):
    program, *arguments = shlex.split(release.printed.splitlines()[-1])
    assert Path(program).name == "bert-snli"
    with running_hub() as hub:
        with hub_client(hub.endpoint, tmp_path):
            assert main(arguments) == 0
        assert hub.repositories["user/name"].branches["main"][-1].files == files_of(release.staged)
        card = (release.staged / "README.md").read_text()
        (snippet,) = re.findall(r"^```python\n(import numpy.*?)^```$", card, re.DOTALL | re.MULTILINE)
        pair = re.findall(r'encode\("(.*)", "(.*)"\)', snippet)[0]
        by_torch = run_without_package(RUN_PIPELINE, tmp_path, hub.endpoint, pair=pair)
        for file, tolerance in (("model.onnx", 1e-5), ("model_int8.onnx", 0.1)):
            code = snippet.replace("onnx/model.onnx", f"onnx/{file}")
            options = {"also_without": ["torch", "transformers"], "snippet": code}
            by_onnx = run_without_package(RUN_ONNX, tmp_path, hub.endpoint, **options)
            assert by_onnx == pytest.approx(by_torch, abs=tolerance), file
