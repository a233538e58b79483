"""What `huggingface_hub` reads from the header of `model.safetensors`."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from safetensors import safe_open
from transformers import PreTrainedModel

from tests.support.hub_server import Commit, Repository, hub_client, running_hub


def test_hub_counts_the_parameters_from_the_header(folder: Path, model: PreTrainedModel, tmp_path: Path):
    files = {"model.safetensors": (folder / "model.safetensors").read_bytes()}
    with running_hub() as hub, hub_client(hub.endpoint, tmp_path):
        hub.repositories["user/name"] = Repository(False, {"main": [Commit("a model", files)]})
        api = HfApi(endpoint=hub.endpoint)
        metadata = api.get_safetensors_metadata("user/name")
        file_metadata = api.parse_safetensors_file_metadata("user/name", "model.safetensors")
    assert not metadata.sharded
    assert metadata.parameter_count == file_metadata.parameter_count == {"F32": model.num_parameters()}
    assert file_metadata.metadata == {"format": "pt"}
    assert file_metadata.tensors.keys() == model.state_dict().keys()


@pytest.mark.parametrize("source", ["base_model", "trained_classifier"])
def test_weights_have_the_format_of_pytorch(source: str, request: pytest.FixtureRequest):
    with safe_open(request.getfixturevalue(source) / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}
