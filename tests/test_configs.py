"""The configurations of Accelerate in `configs/`, run as far as a machine without GPUs can."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bert_snli.cli import main
from tests import soak
from tests.conftest import spare_port
from tests.test_training import metrics, step_losses

REPOSITORY = Path(__file__).resolve().parents[1]
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


def test_two_machines_train_as_one_process_does(inputs: Path, tmp_path: Path):
    """Both are this one."""
    where = ("--num_processes", 2, "--main_process_port", spare_port())
    machines = [
        launch(inputs, "multi_node", "bert_snli.finetune", tmp_path / "run", *where, "--machine_rank", rank)
        for rank in range(2)
    ]
    for machine in machines:
        soak.finish(machine)
    np.testing.assert_allclose(step_losses(tmp_path / "run"), step_losses(inputs / "whole"), rtol=1e-5)


def test_fsdp_trains_as_one_process_does_and_resumes_to_the_bit(inputs: Path, tmp_path: Path):
    command = (inputs, "fsdp2", "tests.fsdp_on_cpu", tmp_path / "run", "--num_processes", 2)
    run = launch(*command)
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 0, said
    assert "--fast_forward false: FSDP shards the weights" in said
    np.testing.assert_allclose(step_losses(tmp_path / "run"), step_losses(inputs / "whole"), rtol=1e-5)
    ours, whole = metrics(tmp_path / "run")[-1], metrics(inputs / "whole")[-1]
    assert ours["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-5)
    shutil.copytree(tmp_path / "run", tmp_path / "unharmed")
    (tmp_path / "run" / "train_results.json").unlink()
    soak.finish(launch(*command, resume_from_checkpoint="auto"))
    assert soak.differences(tmp_path / "unharmed", tmp_path / "run") == []


@pytest.mark.parametrize(
    ("command", "kind", "message"),
    [
        ("finetune", "FSDP", "accelerate's FSDP is supported in version 2 only; set fsdp_version: 2"),
        ("finetune", "FSDP 2", "accelerate's FSDP needs GPUs, and there are none; use accelerate_config.yaml"),
        ("finetune", "DEEPSPEED", "accelerate's DEEPSPEED is not supported; use MULTI_GPU, or FSDP"),
        ("pretrain", "DEEPSPEED", "accelerate's DEEPSPEED is not supported; use MULTI_GPU, or FSDP"),
        ("pretrain", "FSDP", "accelerate's FSDP is for finetune; pretrain on MULTI_GPU"),
    ],
)
def test_what_shards_otherwise_is_refused(
    command: str, kind: str, message: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind.split()[0]}", "true")
    monkeypatch.setenv("FSDP_VERSION", kind.split()[-1])
    where = ["--dataset_name_or_path", inputs / "corpus", "--output_dir", tmp_path / "run"]
    start = ["--model_name_or_path", inputs / "start"] if command == "finetune" else []
    assert main([command, *map(str, [*where, *start])]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
