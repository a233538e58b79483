"""What a run leaves besides its model: where it came from, its history, its page."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import transformers
from PIL import Image
from transformers import TrainerState

from bert_snli.finetune import finetune, parse_recipe
from bert_snli.pretrain import parse_recipe as parse_pretraining
from bert_snli.pretrain import pretrain
from bert_snli.training import record
from conversion.checkpoint import sha256_of_file
from tests.support import soak
from tests.support.finetuning import metrics, run_finetune

CHANGES = {"dropout": 0.1, "max_steps": 7, "save_steps": 2, "logging_steps": 3, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    soak.make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def run(inputs: Path) -> Path:
    run_finetune(inputs / "start", inputs / "corpus", inputs / "run", **CHANGES, report_to="tensorboard")
    return inputs / "run"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_it_says_where_the_weights_come_from(inputs: Path, run: Path):
    origin = read(run / "run.json")
    assert origin["model_sha256"] == sha256_of_file(inputs / "start" / "model.safetensors")
    assert origin["data_fingerprint"] == read(run / "checkpoint-6" / "progress.json")["data"]
    assert origin["versions"]["transformers"] == transformers.__version__
    assert origin["machine"]["num_processes"] == 1
    assert origin["resumed"] == []


def test_the_commit_is_named_and_whether_the_code_is_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def git(*words: str) -> str:
        options = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *options, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    monkeypatch.setattr(record, "REPOSITORY", tmp_path)
    assert record.git_commit() is None
    git("init", "-q")
    assert record.git_commit() is None
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    assert record.git_commit() == git("rev-parse", "HEAD")
    (tmp_path / "code.py").write_text("2")
    assert record.git_commit() == git("rev-parse", "HEAD") + "+changes"
    monkeypatch.setenv("PATH", "")
    assert record.git_commit() is None


def test_the_recipe_in_the_folder_repeats_the_run_to_the_bit(run: Path, tmp_path: Path):
    finetune(parse_recipe(["--config", str(run / "recipe.yaml"), "--output_dir", str(tmp_path / "again")]))
    assert soak.differences(run, tmp_path / "again") == []
    assert read(tmp_path / "again" / "run.json")["data_fingerprint"] == read(run / "run.json")["data_fingerprint"]


def test_transformers_reads_the_history(run: Path):
    state = TrainerState.load_from_json(str(run / "trainer_state.json"))
    lines = metrics(run)
    evaluations = [entry for entry in lines if "eval_loss" in entry]
    assert (state.global_step, state.max_steps) == (7, 7)
    assert state.best_metric == max(entry["eval_accuracy"] for entry in evaluations)
    assert len(state.log_history) == len(lines)
    for ours, line in zip(state.log_history, lines, strict=True):
        assert (ours["step"], ours["epoch"]) == (line["step"], line["epoch"])
        if "eval_loss" in line:
            assert ours["eval_accuracy"] == line["eval_accuracy"] and "loss" not in ours
        else:
            assert ours["loss"] == line["train_loss"] and ours["grad_norm"] > 0 and ours["learning_rate"] >= 0


def test_the_report_has_its_figures_and_its_pictures(run: Path):
    text = (run / "report.md").read_text(encoding="utf-8")
    results = read(run / "train_results.json")
    assert f"| {results['kept_epoch']:g} (kept) |" in text and f"{results['eval_accuracy']:.4f}" in text
    for name in ("curve.png", "course.png", "confusion_matrix.png"):
        assert f"({name})" in text
        with Image.open(run / name) as picture:
            assert min(picture.size) > 500
    assert read(run / "run.json")["model_sha256"] in text


def test_the_confusion_matrix_is_that_of_the_kept_model(run: Path, inputs: Path):
    kept = read(run / "checkpoint-6" / "progress.json")["kept"]
    first = next(entry for entry in metrics(run) if "eval_loss" in entry)
    matrix = kept["confusion_matrix"]
    assert kept["step"] == first["step"]
    right, total = sum(matrix[name][name] for name in matrix), sum(sum(row.values()) for row in matrix.values())
    assert right / total == pytest.approx(first["eval_accuracy"])


def test_a_resumed_run_says_so_and_the_tracker_shows_each_step_once(run: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    recipe = ["--config", str(run / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]
    finetune(parse_recipe([*recipe, "--resume_from_checkpoint", "auto"]))
    assert [entry["step"] for entry in read(tmp_path / "run" / "run.json")["resumed"]] == [4]
    assert read(tmp_path / "run" / "run.json")["id"] == read(run / "run.json")["id"]
    assert "from step 4" in (tmp_path / "run" / "report.md").read_text()
    events = EventAccumulator(str(tmp_path / "run" / "bert-snli"))
    events.Reload()
    lines = metrics(tmp_path / "run")
    for name, which in (("train_loss", "learning_rate"), ("eval_loss", "eval_loss")):
        shown = [(event.step, pytest.approx(event.value)) for event in events.Scalars(name.replace("_", "/"))]
        assert shown == [(entry["step"], entry[name]) for entry in lines if which in entry]


@pytest.mark.slow
def test_a_killed_run_loses_nothing_that_it_told_the_tracker(inputs: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {"max_train_samples": 640, "num_train_epochs": 2, "report_to": "tensorboard"}
    run = soak.begin(inputs / "corpus", inputs / "start", tmp_path / "run", 1, **changes)
    while not (tmp_path / "run" / "checkpoint-15").exists():
        assert run.poll() is None
        time.sleep(0.01)
    soak.kill_all(run)
    soak.finish(soak.begin(inputs / "corpus", inputs / "start", tmp_path / "run", 1, **changes))
    events = EventAccumulator(str(tmp_path / "run" / "bert-snli"))
    events.Reload()
    lines = [entry["step"] for entry in metrics(tmp_path / "run") if "grad_norm" in entry]
    assert [event.step for event in events.Scalars("train/grad_norm")] == lines


def test_pretraining_leaves_the_same(inputs: Path, tmp_path: Path):
    sizes = "--hidden_size 16 --intermediate_size 16 --num_attention_heads 2 --min_freq 1 --max_steps 3".split()
    where = ["--dataset_name_or_path", str(inputs / "corpus"), "--output_dir", str(tmp_path / "run")]
    pretrain(parse_pretraining([*where, *sizes, "--logging_steps", "1"]))
    state = TrainerState.load_from_json(str(tmp_path / "run" / "trainer_state.json"))
    assert state.best_metric == metrics(tmp_path / "run")[-1]["eval_loss"]
    text = (tmp_path / "run" / "report.md").read_text()
    assert "fresh weights" in text and "confusion" not in text
    assert read(tmp_path / "run" / "run.json")["model_sha256"] is None


def test_what_an_earlier_run_left_does_not_outlive_it(run: Path, inputs: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    changes = {**CHANGES, "overwrite_output_dir": True, "learning_rate": 1e30, "warmup_steps": 0}
    with pytest.raises(Exception, match="not finite"):
        run_finetune(inputs / "start", inputs / "corpus", tmp_path / "run", **changes)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not left & {"report.md", "course.png", "confusion_matrix.png", "trainer_state.json", "train_results.json"}
    assert "non_finite.json" in left
