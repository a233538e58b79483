"""What training does for GPUs, as far as a machine without one can show it; `test_fake_cuda.py` runs the updates."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from bert_snli.errors import Stopped
from bert_snli.evaluation.metrics import nli_metrics
from bert_snli.training import loop, session
from bert_snli.training.checkpointing import read_progress
from conversion.checkpoint import sha256_of_file
from tests.support.classifiers import save_random_classifier
from tests.support.finetuning import metrics, run_finetune
from tests.support.processes import unused_port

STEPS = {"max_steps": 4, "logging_steps": 2, "save_steps": 2, "max_train_samples": 200, "max_eval_samples": 20}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_classifier(tmp_path_factory.mktemp("start") / "start", spread=0.1)


def test_throughput_includes_work_that_the_device_has_still_to_do(
    start: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A GPU computes after the host has queued an update; the host waits for it where it reads the sums."""
    reduce, waited = Accelerator.reduce, 0.3

    def reduce_when_the_queue_is_empty(accelerator: Accelerator, tensor: torch.Tensor, *arguments) -> torch.Tensor:
        time.sleep(waited)
        return reduce(accelerator, tensor, *arguments)

    monkeypatch.setattr(Accelerator, "reduce", reduce_when_the_queue_is_empty)
    run_finetune(start, corpus, tmp_path / "run", **{**STEPS, "save_steps": 0}, train_batch_size=32, max_length=40)
    lines = [entry for entry in metrics(tmp_path / "run") if "learning_rate" in entry]
    assert [entry["train_samples_per_second"] < 2 * 32 / waited for entry in lines] == [True, True]
    assert metrics(tmp_path / "run")[-1]["train_seconds"] > 2 * waited


class Clock:
    """A clock that can be set forward."""

    passed = 0.0

    def perf_counter(self) -> float:
        return time.perf_counter() + self.passed


def test_time_of_saving_a_checkpoint_is_not_training_time(
    start: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    took, hours = 3600.0, itertools.count(1)
    monkeypatch.setattr("bert_snli.training.loop.time", clock := Clock())
    save = loop.save_checkpoint

    def save_slowly(*arguments) -> Path:
        clock.passed = took * next(hours)
        return save(*arguments)

    monkeypatch.setattr(loop, "save_checkpoint", save_slowly)
    run_finetune(start, corpus, tmp_path / "run", **{**STEPS, "save_steps": 1}, max_length=40)
    assert metrics(tmp_path / "run")[-1]["train_seconds"] < took


def test_time_of_an_evaluation_is_not_training_time_when_a_signal_stops_the_run(
    start: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bert_snli.training.loop.time", clock := Clock())

    def signal_and_measure(*arguments) -> dict:
        clock.passed += 3600
        signal.raise_signal(signal.SIGTERM)
        return nli_metrics(*arguments)

    monkeypatch.setattr("bert_snli.finetune.nli_metrics", signal_and_measure)
    changes = {**STEPS, "max_steps": -1, "num_train_epochs": 2, "save_steps": 0, "max_length": 40}
    with pytest.raises(Stopped):
        run_finetune(start, corpus, tmp_path / "run", **changes)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert read_progress(checkpoint).seconds < 3600


def test_resume_from_a_checkpoint_of_an_earlier_version_says_what_is_unknown(
    start: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    run = tmp_path / "run"
    run_finetune(start, corpus, run, **STEPS, max_length=40)
    edit_progress(run / "checkpoint-4", lambda progress: progress["means"].pop("num_gpus"))
    run_finetune(start, corpus, run, **{**STEPS, "max_steps": 6}, max_length=40, resume_from_checkpoint="auto")
    assert "num_gpus unknown" in capsys.readouterr().err


def edit_progress(checkpoint: Path, change: Callable[[dict], object]) -> None:
    """Change progress.json of a checkpoint, and its checksum."""
    progress = json.loads((checkpoint / "progress.json").read_text())
    change(progress)
    (checkpoint / "progress.json").write_text(json.dumps(progress))
    checksums = json.loads((checkpoint / "checksums.json").read_text())
    checksums["progress.json"] = sha256_of_file(checkpoint / "progress.json")
    (checkpoint / "checksums.json").write_text(json.dumps(checksums))


def test_resume_with_another_number_of_gpus_draws_new_random_numbers_and_says_so(
    start: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Accelerate keeps silent when the random states of a checkpoint do not fit the number of GPUs."""
    run = tmp_path / "run"
    run_finetune(start, corpus, run, **STEPS, max_length=40, seed=5)
    seeds = []
    set_seed = session.set_seed
    monkeypatch.setattr(session, "set_seed", lambda seed, **options: seeds.append(seed) or set_seed(seed, **options))
    edit_progress(run / "checkpoint-4", lambda progress: progress["means"].update(num_gpus=2))
    run_finetune(start, corpus, run, **{**STEPS, "max_steps": 6}, max_length=40, resume_from_checkpoint="auto", seed=5)
    assert "it was made with" in capsys.readouterr().err
    assert seeds == [5 + 4]


ENCODE_SLOWLY = """
import sys, time
from datetime import timedelta
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from bert_snli.training.session import main_process_first

accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=2))])
with main_process_first(accelerator):
    if accelerator.is_main_process:
        time.sleep(5)
    print("encoded")
"""


@pytest.mark.slow
def test_processes_wait_longer_for_the_encoding_than_the_process_group_allows():
    """NCCL's limit is 10 minutes, here it is 2 seconds."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ENCODE_SLOWLY],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [process.communicate(timeout=120)[0] for process in processes] == ["encoded\n", "encoded\n"]
