"""The search for updates whose loss or gradient is not finite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bert_snli.errors import BertSnliError
from bert_snli.training.checkpointing import Progress
from bert_snli.training.finite import NonFiniteDetector


def test_rows_are_not_searched_after_later_updates_have_changed_the_weights(tmp_path: Path):
    """On a GPU the loss is read only at the next log line. By then the weights may be NaN, and so every row's loss."""
    watch = NonFiniteDetector(lambda row: torch.tensor(torch.nan), tmp_path, at_once=False)
    for step, value in enumerate([1.0, torch.nan, torch.nan]):
        watch.add("loss", torch.tensor(value), np.arange(4), Progress(step=step, batch=step))
    with pytest.raises(
        BertSnliError, match=r"not finite at step 2 \(batch 2 of epoch 1, its 4 rows together; .*search"
    ):
        watch.check()
    assert json.loads((tmp_path / "non_finite.json").read_text())["rows_without_a_finite_loss"] == []
