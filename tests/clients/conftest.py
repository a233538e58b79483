"""Fixtures of the tests with other libraries: the folders of fine-tuned models, and what a user loads from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.support.clients import compute_logits, encode, load_model, load_tokenizer
from tests.support.trained_classifier import train_classifier


@pytest.fixture(scope="session")
def matching_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned model with the classifier head `matching`."""
    return train_classifier(tmp_path_factory.mktemp("matching_classifier"), classifier_head="matching")


@pytest.fixture(scope="session", params=["trained_classifier", "matching_classifier"])
def folder(request: pytest.FixtureRequest) -> Path:
    """The folder of a fine-tuned model, with d2l's classifier head or with the head `matching`."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    return load_model(folder)


@pytest.fixture
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(folder)


@pytest.fixture
def inputs(tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """The encoded pairs `tests.support.clients.PAIRS`."""
    return encode(tokenizer)


@pytest.fixture
def logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of `inputs` before the test changes the model."""
    return compute_logits(model, inputs)
