"""The configurations of Accelerate in `configs/`, run as far as a machine without GPUs can."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bert_snli.cli import main
from tests.support import soak
from tests.support.finetuning import step_losses
from tests.support.processes import unused_port

REPOSITORY = Path(__file__).resolve().parents[2]
CHANGES = {"max_train_samples": 320, "max_eval_samples": 60, "num_train_epochs": 1, "dropout": 0.0, "logging_steps": 1}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what one process makes of them in `whole`."""
    folder = tmp_path_factory.mktemp("inputs")
    corpus, start = soak.make_inputs(folder)
    soak.finish(soak.begin(corpus, start, folder / "whole", 1, **CHANGES))
    return folder


def launch(inputs: Path, config: str, module: str, output_dir: Path, *launching: object, **more) -> subprocess.Popen:
    options = {
        "model_name_or_path": inputs / "start",
        "dataset_name_or_path": inputs / "corpus",
        "output_dir": output_dir,
        **soak.OPTIONS,
        **CHANGES,
        **more,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    return subprocess.Popen(
        [*accelerate, f"configs/{config}.yaml", *map(str, launching), "-m", module, *words],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_machines_train_as_one_process_does(inputs: Path, tmp_path: Path):
    """Both are this one."""
    where = ("--num_processes", 2, "--main_process_port", unused_port())
    machines = [
        launch(inputs, "multi_node", "bert_snli.finetune", tmp_path / "run", *where, "--machine_rank", rank)
        for rank in range(2)
    ]
    for machine in machines:
        soak.finish(machine)
    np.testing.assert_allclose(step_losses(tmp_path / "run"), step_losses(inputs / "whole"), rtol=1e-5)


@pytest.mark.parametrize("command", ["finetune", "pretrain"])
@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharded_training_is_refused(
    command: str, kind: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    where = ["--dataset_name_or_path", inputs / "corpus", "--output_dir", tmp_path / "run"]
    start = ["--model_name_or_path", inputs / "start"] if command == "finetune" else []
    assert main([command, *map(str, [*where, *start])]) == 2
    assert f"accelerate's {kind} is not supported; use distributed_type: MULTI_GPU" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
