"""What is minimised, and what is noted of it on the way: in the loop, fine-tuning and pretraining differ in this alone.

An objective gives sums over the pairs it has seen, which may be added up over passes, processes and updates, and makes
figures of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from bert_snli.data.batching import IGNORED_LABEL


class Objective(Protocol):
    """A loss, and its figures."""

    num_sums: int
    metric: str  # the figure that the best model is chosen by

    def __call__(
        self, model: nn.Module, batch: dict[str, torch.Tensor], rows: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The share of `batch` in the loss of the global batch `rows`, and its sums (num_sums,), detached."""

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """By name, what the sums come to: `loss` and others."""

    def score(self, figures: dict[str, float]) -> float:
        """Of an evaluation's figures; the higher, the better the model."""

    def describe(self, entry: dict[str, float], split: str) -> str:
        """A finished epoch in words."""


@dataclass(frozen=True)
class Classification:
    """Cross-entropy of the labels (d2l 15.7.4), its `mean` over the pairs of a batch or their `sum`.

    Labels that are probabilities count as right where the model finds the same one the most probable: a teacher's,
    whose distribution is learnt whole (Hinton et al., 2015, at temperature 1).
    """

    reduction: str
    num_sums = 3
    metric = "accuracy"

    def __call__(
        self, model: nn.Module, batch: dict[str, torch.Tensor], rows: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        labels = batch.pop("labels")
        logits = model(**batch).logits
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED_LABEL)
        hard, counted = labels, labels != IGNORED_LABEL
        if labels.is_floating_point():
            hard, counted = labels.argmax(dim=-1), labels.any(dim=-1)
        right = ((logits.detach().argmax(dim=-1) == hard) & counted).sum()
        sums = torch.stack([loss.detach(), right, counted.sum()])
        return loss / (len(rows) if self.reduction == "mean" else 1), sums

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        loss, right, pairs = sums
        return {"loss": loss / pairs, "accuracy": right / pairs}

    def score(self, figures: dict[str, float]) -> float:
        return figures["accuracy"]

    def describe(self, entry: dict[str, float], split: str) -> str:
        return (
            f"train loss {entry['train_loss']:.3f}, train accuracy {entry['train_accuracy']:.3f}, "
            f"{split} accuracy {entry['eval_accuracy']:.3f}"
        )


@dataclass(frozen=True)
class Pretraining:
    """Masked language model and next sentence: the sum of two mean cross-entropies (d2l 15.10.1).

    The one is the mean over all predicted positions of a batch, of which each row has its share in `predictions_R`;
    the other over its pairs. (The book's PyTorch form takes the mean over the padded positions as well, which predict
    `<unk>`; its MXNet form does not, and nor do we.)
    """

    predictions_R: np.ndarray
    num_sums = 6
    metric = "loss"

    def __call__(
        self, model: nn.Module, batch: dict[str, torch.Tensor], rows: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mlm_loss, nsp_loss, right = model(**batch)
        counts = torch.stack([(batch[name] != IGNORED_LABEL).sum() for name in ("labels", "next_sentence_label")])
        sums = torch.stack([mlm_loss.detach(), nsp_loss.detach(), *right, *counts])
        return mlm_loss / int(self.predictions_R[rows].sum()) + nsp_loss / len(rows), sums

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        mlm_loss, nsp_loss, mlm_right, nsp_right, predictions, pairs = sums
        mlm, nsp = mlm_loss / predictions, nsp_loss / pairs
        return {
            "loss": mlm + nsp,
            "mlm_loss": mlm,
            "perplexity": math.exp(min(mlm, 700)),
            "mlm_accuracy": mlm_right / predictions,
            "nsp_loss": nsp,
            "nsp_accuracy": nsp_right / pairs,
        }

    def score(self, figures: dict[str, float]) -> float:
        return -figures["loss"]

    def describe(self, entry: dict[str, float], split: str) -> str:
        parts = [
            f"{name}: MLM loss {entry[f'{key}_mlm_loss']:.3f} (accuracy {entry[f'{key}_mlm_accuracy']:.3f}), "
            f"NSP loss {entry[f'{key}_nsp_loss']:.3f} (accuracy {entry[f'{key}_nsp_accuracy']:.3f})"
            for key, name in (("train", "train"), ("eval", split))
        ]
        return "; ".join(parts)
