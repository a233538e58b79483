"""What a run writes next to its model: where the weights come from, the metrics, the report, the trackers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import transformers
from PIL import Image

from bert_snli.errors import BertSnliError, Stopped
from bert_snli.files import sha256_of_file
from bert_snli.finetune import finetune_model
from bert_snli.modeling import D2LBertConfig
from bert_snli.modeling.labels import ID2LABEL
from bert_snli.pretrain import pretrain_model
from bert_snli.training import loop
from bert_snli.training.arguments import PretrainArguments
from bert_snli.training.command_line import FINETUNE, PRETRAIN
from tests.support.finetuning import find_differences, read_metrics, run_finetune
from tests.support.training_processes import start_finetuning

CHANGES = {"dropout": 0.1, "max_steps": 7, "save_steps": 2, "logging_steps": 3, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def finished_run(base_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with TensorBoard, two evaluations, and checkpoints of steps 4 and 6."""
    output_dir = tmp_path_factory.mktemp("finished_run") / "run"
    run_finetune(base_model, corpus, output_dir, **CHANGES, report_to="tensorboard")
    return output_dir


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_run_json_identifies_base_model_data_and_versions(base_model: Path, finished_run: Path):
    origin = read_json(finished_run / "run.json")
    assert origin["model_sha256"] == sha256_of_file(base_model / "model.safetensors")
    assert origin["data_fingerprint"] == read_json(finished_run / "checkpoint-6" / "progress.json")["data_fingerprint"]
    assert origin["versions"]["transformers"] == transformers.__version__
    assert origin["machine"]["num_processes"] == 1
    assert origin["resumed"] == []


def test_saved_recipe_repeats_the_run_bit_exactly(finished_run: Path, tmp_path: Path):
    finetune_model(
        FINETUNE.parse(["--config", str(finished_run / "recipe.yaml"), "--output_dir", str(tmp_path / "again")])
    )
    assert find_differences(finished_run, tmp_path / "again") == []
    first, second = (read_json(folder / "run.json") for folder in (finished_run, tmp_path / "again"))
    assert first["data_fingerprint"] == second["data_fingerprint"]


def test_report_shows_metrics_and_plots(finished_run: Path):
    text = (finished_run / "report.md").read_text(encoding="utf-8")
    results = read_json(finished_run / "train_results.json")
    assert f"| {results['saved_epoch']:g} (saved) |" in text and f"{results['eval_accuracy']:.4f}" in text
    for name in ("curve.png", "training.png", "confusion_matrix.png"):
        assert f"({name})" in text
        with Image.open(finished_run / name) as plot:
            assert min(plot.size) > 500 and len(plot.convert("RGB").getcolors(1 << 24)) > 10  # not blank
    assert read_json(finished_run / "run.json")["model_sha256"] in text


def test_confusion_matrix_is_that_of_the_best_checkpoint(finished_run: Path):
    best = read_json(finished_run / "checkpoint-6" / "progress.json")["saved_model"]
    first = next(entry for entry in read_metrics(finished_run) if "eval_loss" in entry)
    matrix = best["confusion_matrix"]
    assert best["step"] == first["step"]
    correct, total = sum(matrix[name][name] for name in matrix), sum(sum(row.values()) for row in matrix.values())
    assert correct / total == pytest.approx(first["eval_accuracy"])


def test_resumed_run_is_recorded_and_tensorboard_shows_each_step_once(finished_run: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    recipe = ["--config", str(finished_run / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]
    finetune_model(FINETUNE.parse([*recipe, "--resume_from_checkpoint", "auto"]))
    assert [entry["step"] for entry in read_json(tmp_path / "run" / "run.json")["resumed"]] == [4]
    assert read_json(tmp_path / "run" / "run.json")["id"] == read_json(finished_run / "run.json")["id"]
    assert "from step 4" in (tmp_path / "run" / "report.md").read_text()
    events = EventAccumulator(str(tmp_path / "run" / "bert-snli"))
    events.Reload()
    lines = read_metrics(tmp_path / "run")
    for name, field in (("train_loss", "learning_rate"), ("eval_loss", "eval_loss")):
        shown = [(event.step, pytest.approx(event.value)) for event in events.Scalars(name.replace("_", "/"))]
        assert shown == [(entry["step"], entry[name]) for entry in lines if field in entry]


@pytest.mark.slow
def test_tensorboard_shows_all_steps_of_a_killed_and_resumed_run(base_model: Path, corpus: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output_dir = tmp_path / "run"
    changes = {**CHANGES, "max_steps": 100, "save_steps": 5, "report_to": "tensorboard"}
    process = start_finetuning(base_model, corpus, output_dir, **changes)
    while not (output_dir / "checkpoint-15").exists():
        assert process.is_running()
        time.sleep(0.005)
    process.kill()
    assert not (output_dir / "train_results.json").exists()
    time.sleep(1)  # TensorBoard reads the files of a run in the order of their names, which hold the second of creation
    run_finetune(base_model, corpus, output_dir, **changes, resume_from_checkpoint="auto")
    assert read_json(output_dir / "run.json")["resumed"][0]["step"] >= 15
    events = EventAccumulator(str(output_dir / "bert-snli"))
    events.Reload()
    steps = [entry["step"] for entry in read_metrics(output_dir) if "grad_norm" in entry]
    assert [event.step for event in events.Scalars("train/grad_norm")] == steps


def test_pretraining_writes_the_same_records(corpus: Path, tmp_path: Path):
    sizes = "--hidden_size 16 --intermediate_size 16 --num_attention_heads 2 --min_freq 1 --max_steps 3".split()
    paths = ["--dataset_name_or_path", str(corpus), "--output_dir", str(tmp_path / "run")]
    pretrain_model(PRETRAIN.parse([*paths, *sizes, "--logging_steps", "1"]))
    text = (tmp_path / "run" / "report.md").read_text()
    assert "new weights" in text and "confusion" not in text
    assert read_json(tmp_path / "run" / "run.json")["model_sha256"] is None
    assert D2LBertConfig.from_pretrained(tmp_path / "run").id2label == ID2LABEL  # a classifier has the labels of SNLI


def test_overwrite_output_dir_removes_the_records_of_the_earlier_run(
    base_model: Path, corpus: Path, finished_run: Path, tmp_path: Path
):
    shutil.copytree(finished_run, tmp_path / "run")
    changes = {**CHANGES, "overwrite_output_dir": True, "learning_rate": 1e30}
    with pytest.raises(BertSnliError, match="not finite"):
        run_finetune(base_model, corpus, tmp_path / "run", **changes)
    found = {path.name for path in (tmp_path / "run").iterdir()}
    assert not found & {"report.md", "training.png", "confusion_matrix.png", "train_results.json"}


def test_signal_after_the_first_epoch_of_pretraining_draws_the_curve(wiki: Path, tmp_path: Path, monkeypatch):
    """The last line of metrics is then one of updates, not of an evaluation."""
    append_metrics = loop.append_metrics
    evaluated = []

    def append_and_signal(output_dir: Path, entry: dict) -> None:
        append_metrics(output_dir, entry)
        evaluated.append("eval_loss" in entry)
        if any(evaluated[:-1]):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "append_metrics", append_and_signal)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "min_freq": 1}
    steps = {"train_batch_size": 16, "logging_steps": 1, "mixed_precision": "no", "max_length": 64}
    with pytest.raises(Stopped):
        pretrain_model(PretrainArguments(dataset_name_or_path=wiki, output_dir=tmp_path / "run", **sizes, **steps))
    assert evaluated[-1] is False and (tmp_path / "run" / "curve.png").is_file()
