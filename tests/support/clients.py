"""Pairs, loading and comparison for the tests with other libraries (`tests/clients`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from bert_snli.modeling import D2LBertConfig
from tests.support.tolerances import rounding
from tests.support.trained_classifier import KNOWN_PAIRS

PAIRS = [
    *KNOWN_PAIRS.values(),
    ("A cat is sleeping in the house .", "Nobody is in the house ."),
    ("A bird is eating .", "The bird is hungry ."),
]


def import_or_skip(package: str, install: str = "-e '.[clients]'") -> Any:
    """Import a package, or skip the test (or the test module that calls this) if it is not installed."""
    return pytest.importorskip(package, reason=f"{package} is not installed; pip install {install}")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model folder as users of `transformers` do."""
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def load_model(folder: Path, **options) -> PreTrainedModel:
    """Load the classifier of a model folder as users of `transformers` do."""
    return AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, **options)


def encode(
    tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]] = PAIRS, **options
) -> dict[str, torch.Tensor]:
    """Return the padded inputs of the model for `pairs`."""
    premises, hypotheses = map(list, zip(*pairs, strict=True))
    return dict(tokenizer(premises, hypotheses, padding=True, return_tensors="pt", **options))


def compute_logits(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits (B, C) of a model in evaluation mode."""
    with torch.no_grad():
        return model.eval()(**inputs).logits


def assert_same_logits(found: torch.Tensor | np.ndarray, expected: torch.Tensor, config: D2LBertConfig) -> None:
    """Assert that two computations of the same logits are equal up to rounding."""
    tolerance = rounding(config) * expected.abs().max().item()
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=0, atol=tolerance)
