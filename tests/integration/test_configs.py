"""The Accelerate configurations in `configs/`, as far as a machine without GPUs can run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bert_snli.cli import main
from tests.support.finetuning import run_finetune, step_losses
from tests.support.processes import REPOSITORY, unused_port
from tests.support.training_processes import command_line


@pytest.mark.slow
def test_losses_of_two_machines_equal_those_of_one_process(base_model: Path, corpus: Path, tmp_path: Path):
    """This machine plays both."""
    run, changes = tmp_path / "run", {"max_steps": 5}
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    config = ["--config_file", "configs/multi_node.yaml", "--num_processes", 2, "--main_process_port", unused_port()]
    machines = [
        subprocess.Popen(
            [
                *map(str, [*accelerate, *config, "--machine_rank", rank, "-m", "bert_snli.finetune"]),
                *command_line(base_model, corpus, run, **changes),
            ],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], printed
    expected = run_finetune(base_model, corpus, tmp_path / "one", **changes)
    np.testing.assert_allclose(step_losses(run), expected, rtol=1e-5)


@pytest.mark.parametrize("command", ["finetune", "pretrain"])
@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharded_training_is_refused(
    command: str, kind: str, base_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    paths = ["--max_length", 40, "--dataset_name_or_path", corpus, "--output_dir", tmp_path / "run"]
    model = ["--model_name_or_path", base_model] if command == "finetune" else []
    assert main([command, *map(str, [*paths, *model])]) == 2
    assert f"distributed_type {kind}: is not supported" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
