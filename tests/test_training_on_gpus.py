"""What training does for GPUs, as far as a machine without one can show it; `test_fake_cuda.py` runs the updates."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator

from bert_snli.finetune import FinetuneRecipe
from bert_snli.training import session
from bert_snli.training.loop import TrainingLoop
from tests.conftest import save_random_classifier, spare_port
from tests.test_training import metrics, run_recipe

STEPS = {"max_steps": 4, "logging_steps": 2, "save_steps": 2, "max_train_samples": 200, "max_eval_samples": 20}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_classifier(tmp_path_factory.mktemp("start") / "start", spread=0.1)


@pytest.fixture
def recipe(tmp_path: Path) -> FinetuneRecipe:
    return FinetuneRecipe(model_name_or_path="start", output_dir=str(tmp_path / "run"), mixed_precision="no")


def test_throughput_includes_work_that_the_device_has_still_to_do(
    start: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A GPU computes after the host has queued an update; the host waits for it where it reads the sums."""
    reduce, waited = Accelerator.reduce, 0.3

    def reduce_when_the_queue_is_empty(accelerator: Accelerator, tensor: torch.Tensor, *arguments) -> torch.Tensor:
        time.sleep(waited)
        return reduce(accelerator, tensor, *arguments)

    monkeypatch.setattr(Accelerator, "reduce", reduce_when_the_queue_is_empty)
    run_recipe(start, corpus, tmp_path / "run", **{**STEPS, "save_steps": 0}, train_batch_size=32, max_length=40)
    lines = [entry for entry in metrics(tmp_path / "run") if "learning_rate" in entry]
    assert [entry["train_samples_per_second"] < 2 * 32 / waited for entry in lines] == [True, True]
    assert metrics(tmp_path / "run")[-1]["train_seconds"] > 2 * waited


def test_time_of_saving_a_checkpoint_is_not_training_time(
    start: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save, took = TrainingLoop._save_checkpoint, 1.0

    def save_slowly(loop: TrainingLoop) -> Path:
        monkeypatch.setattr("bert_snli.training.loop.save_checkpoint", lambda *_: time.sleep(took) or tmp_path)
        return save(loop)

    monkeypatch.setattr(TrainingLoop, "_save_checkpoint", save_slowly)
    run_recipe(start, corpus, tmp_path / "run", **{**STEPS, "save_steps": 1}, max_length=40)
    assert metrics(tmp_path / "run")[-1]["train_seconds"] < took


def test_resume_with_another_number_of_gpus_draws_new_random_numbers_and_says_so(
    start: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Accelerate keeps silent when the random states of a checkpoint do not fit the number of GPUs."""
    run = tmp_path / "run"
    run_recipe(start, corpus, run, **STEPS, max_length=40, seed=5)
    seeds = []
    set_seed = session.set_seed
    monkeypatch.setattr(session, "set_seed", lambda seed, **options: seeds.append(seed) or set_seed(seed, **options))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    run_recipe(start, corpus, run, **{**STEPS, "max_steps": 6}, max_length=40, resume_from_checkpoint="auto", seed=5)
    assert "it was made with" in capsys.readouterr().err
    assert seeds == [5 + 4]


def test_a_process_waits_for_hours_while_another_one_encodes(recipe: FinetuneRecipe, monkeypatch: pytest.MonkeyPatch):
    """NCCL's own limit is 10 minutes."""
    environment = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": spare_port()}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    try:
        accelerator, _, _ = session.open_accelerator(recipe)
        backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
        assert backend.options._timeout == session.TIMEOUT
        assert accelerator.ddp_handler.broadcast_buffers is False
        assert accelerator.ddp_handler.gradient_as_bucket_view is True
    finally:
        dist.destroy_process_group()
