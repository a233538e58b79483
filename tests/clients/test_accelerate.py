"""Folders loaded onto disk, and `accelerate estimate-memory`.

`tests/unit/test_modeling.py` tests `cpu_offload`, `disk_offload` and `load_checkpoint_and_dispatch` with all classes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from accelerate.utils import convert_bytes
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from tests.support.clients import compute_logits, load_model
from tests.support.hub_server import Commit, Repository, running_hub
from tests.support.without_package import clean_environment

DEVICE_MAP = {"bert": "disk", "classifier": "cpu"}


def load_and_dispatch(folder: Path, offload_folder: Path) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with init_empty_weights():
        empty = AutoModelForSequenceClassification.from_config(config, trust_remote_code=True)
    options = {"device_map": DEVICE_MAP, "offload_folder": str(offload_folder), "force_hooks": True}
    return load_checkpoint_and_dispatch(empty, str(folder), **options)


def load_with_device_map(folder: Path, offload_folder: Path) -> PreTrainedModel:
    return load_model(folder, device_map=DEVICE_MAP, offload_folder=str(offload_folder))


@pytest.mark.parametrize("load", [load_and_dispatch, load_with_device_map])
def test_model_with_weights_on_disk_has_the_same_logits(
    load: Callable, folder: Path, inputs: dict[str, torch.Tensor], logits: torch.Tensor, tmp_path: Path
):
    offloaded = load(folder, tmp_path)
    assert all(parameter.is_meta for parameter in offloaded.bert.parameters())
    assert torch.equal(compute_logits(offloaded, inputs), logits)


def test_estimate_memory_reads_a_model_on_the_hub(matching_classifier: Path, tmp_path: Path):
    files = {path.name: path.read_bytes() for path in matching_classifier.iterdir() if path.is_file()}
    command = ["-m", "accelerate.commands.accelerate_cli", "estimate-memory", "user/name", "--trust_remote_code"]
    with running_hub() as hub:
        hub.repositories["user/name"] = Repository(False, {"main": [Commit("a model", files)]})
        done = subprocess.run(
            [sys.executable, *command, "--library_name", "transformers", "--dtypes", "float32"],
            env=clean_environment(tmp_path, hub.endpoint),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    # accelerate builds the first class of `auto_map` whose name begins with AutoModelFor.
    config = AutoConfig.from_pretrained(matching_classifier, trust_remote_code=True)
    largest = AutoModelForMaskedLM.from_config(config, trust_remote_code=True)
    row = done.stdout.splitlines()[-2]
    assert [cell.strip() for cell in row.split("│")][3] == convert_bytes(4 * largest.num_parameters())
