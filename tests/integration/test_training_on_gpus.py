"""Training behaviour that matters on GPUs, as far as a CPU can show it. `test_fake_cuda.py` runs the updates."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator

from bert_snli.errors import BertSnliError, Stopped
from bert_snli.evaluation.metrics import nli_metrics
from bert_snli.files import sha256_of_file
from bert_snli.training import loop, setup
from bert_snli.training.arguments import FinetuneArguments
from bert_snli.training.checkpointing import read_progress
from bert_snli.training.setup import open_accelerator
from tests.support.classifiers import save_random_classifier
from tests.support.finetuning import read_metrics, run_finetune
from tests.support.processes import unused_port
from tests.support.training_processes import SERVER

pytestmark = pytest.mark.usefixtures("without_plots")

STEPS = {"max_steps": 4, "logging_steps": 2, "save_steps": 2, "max_train_samples": 200, "max_eval_samples": 20}
HOUR = 3600.0  # seconds


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_classifier(tmp_path_factory.mktemp("base_model") / "model", spread=0.1)


@pytest.fixture(scope="module")
def finished_run(base_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 2 and 4."""
    output_dir = tmp_path_factory.mktemp("finished_run") / "run"
    run_finetune(base_model, corpus, output_dir, **STEPS, seed=5)
    return output_dir


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of `finished_run`."""
    return shutil.copytree(finished_run, tmp_path / "run")


def test_throughput_includes_the_time_until_the_device_has_finished(
    base_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A GPU computes after the host has queued an update. The host waits for it when it reads the sums."""
    reduce, seconds = Accelerator.reduce, 0.3

    def wait_and_reduce(accelerator: Accelerator, tensor: torch.Tensor, *arguments) -> torch.Tensor:
        time.sleep(seconds)
        return reduce(accelerator, tensor, *arguments)

    monkeypatch.setattr(Accelerator, "reduce", wait_and_reduce)
    run_finetune(base_model, corpus, tmp_path / "run", **{**STEPS, "save_steps": 0}, train_batch_size=32)
    lines = [entry for entry in read_metrics(tmp_path / "run") if "learning_rate" in entry]
    assert [entry["train_samples_per_second"] < 2 * 32 / seconds for entry in lines] == [True, True]
    assert read_metrics(tmp_path / "run")[-1]["train_seconds"] > 2 * seconds


class Clock:
    """A replacement for the module `time` that a test can move forward."""

    added = 0.0

    def perf_counter(self) -> float:
        return time.perf_counter() + self.added


def test_time_of_saving_a_checkpoint_is_not_training_time(
    base_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bert_snli.training.loop.time", clock := Clock())
    save = loop.save_checkpoint

    def save_slowly(*arguments) -> Path:
        clock.added += HOUR
        return save(*arguments)

    monkeypatch.setattr(loop, "save_checkpoint", save_slowly)
    run_finetune(base_model, corpus, tmp_path / "run", **{**STEPS, "save_steps": 1})
    assert read_metrics(tmp_path / "run")[-1]["train_seconds"] < HOUR


def test_time_of_an_evaluation_is_not_training_time_when_a_signal_stops_the_run(
    base_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bert_snli.training.loop.time", clock := Clock())

    def signal_and_measure(*arguments) -> dict:
        clock.added += HOUR
        signal.raise_signal(signal.SIGTERM)
        return nli_metrics(*arguments)

    monkeypatch.setattr("bert_snli.finetune.nli_metrics", signal_and_measure)
    changes = {**STEPS, "max_steps": -1, "num_train_epochs": 2, "save_steps": 0}
    with pytest.raises(Stopped):
        run_finetune(base_model, corpus, tmp_path / "run", **changes)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert read_progress(checkpoint).seconds < HOUR


def test_resume_from_a_checkpoint_without_a_setting_says_that_it_is_unknown(
    base_model: Path, corpus: Path, run: Path, caplog: pytest.LogCaptureFixture
):
    edit_progress(run / "checkpoint-4", lambda progress: progress["settings"].pop("num_gpus"))
    run_finetune(base_model, corpus, run, **{**STEPS, "max_steps": 6}, resume_from_checkpoint="auto", seed=5)
    assert "num_gpus was unknown, is 0" in caplog.text


def edit_progress(checkpoint: Path, change: Callable[[dict], object]) -> None:
    """Change progress.json of a checkpoint, and its checksum."""
    progress = json.loads((checkpoint / "progress.json").read_text())
    change(progress)
    (checkpoint / "progress.json").write_text(json.dumps(progress))
    checksums = json.loads((checkpoint / "checksums.json").read_text())
    checksums["progress.json"] = sha256_of_file(checkpoint / "progress.json")
    (checkpoint / "checksums.json").write_text(json.dumps(checksums))


def test_resume_with_another_number_of_gpus_draws_new_random_numbers_and_says_so(
    base_model: Path, corpus: Path, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Accelerate does not warn when the random states of a checkpoint do not fit the number of GPUs."""
    seeds = []
    set_seed = setup.set_seed
    monkeypatch.setattr(setup, "set_seed", lambda seed, **options: seeds.append(seed) or set_seed(seed, **options))
    edit_progress(run / "checkpoint-4", lambda progress: progress["settings"].update(num_gpus=2))
    run_finetune(base_model, corpus, run, **{**STEPS, "max_steps": 6}, resume_from_checkpoint="auto", seed=5)
    assert "num_gpus was 2, is 0" in caplog.text
    assert seeds == [5 + 4]


def measure_timeout(rank: int, port: int, timeouts) -> None:
    """Be one of two processes of a run."""
    place = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    open_accelerator(FinetuneArguments("model", output_dir="run", mixed_precision="no"))
    timeouts.put(dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout)


@pytest.mark.slow
def test_processes_wait_for_the_encoding_longer_than_ten_minutes():
    """Ten minutes are the timeout of NCCL."""
    timeouts = SERVER.Queue()
    port = unused_port()
    processes = [SERVER.Process(target=measure_timeout, args=(rank, port, timeouts)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [timeouts.get(timeout=1) for _ in processes] == [timedelta(hours=1)] * 2


def test_fp16_is_refused_if_accelerate_is_set_to_the_cpu_of_a_machine_with_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    arguments = FinetuneArguments(model_name_or_path="m", output_dir=str(tmp_path / "run"), mixed_precision="fp16")
    with pytest.raises(BertSnliError, match="mixed_precision fp16: needs a GPU, but the run is on a CPU"):
        setup.check_arguments(arguments)
