"""The losses of fine-tuning and pretraining, and their metrics.

An objective is called with the module, a micro-batch and the row numbers of its global batch. It returns the
contribution to the loss of the global batch, and detached sums (num_sums,), which can be added over micro-batches,
processes and updates. `metrics` turns sums into means. `score` is higher for a better model. `main_metrics` are logged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bert_snli.data.batching import IGNORED_LABEL


@dataclass(frozen=True)
class ClassificationObjective:
    """Cross-entropy of the labels (d2l 15.7.4), its `mean` or `sum` over the pairs of a batch.

    Labels may be probabilities, for knowledge distillation at temperature 1 (Hinton et al., 2015). A prediction is then
    correct if it equals the most probable label.
    """

    reduction: str
    num_sums = 3
    main_metrics = ("loss", "accuracy")

    def __call__(
        self, model: nn.Module, batch: dict[str, torch.Tensor], rows: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        labels = batch.pop("labels")
        logits = model(**batch).logits
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED_LABEL)
        if labels.is_floating_point():
            hard_labels, has_label = labels.argmax(dim=-1), labels.any(dim=-1)
        else:
            hard_labels, has_label = labels, labels != IGNORED_LABEL
        num_correct = ((logits.detach().argmax(dim=-1) == hard_labels) & has_label).sum()
        sums = torch.stack([loss.detach(), num_correct, has_label.sum()])
        return loss / (len(rows) if self.reduction == "mean" else 1), sums

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        loss, num_correct, num_pairs = sums
        return {"loss": loss / num_pairs, "accuracy": num_correct / num_pairs}

    def score(self, metrics: dict[str, float]) -> float:
        return metrics["accuracy"]


@dataclass(frozen=True)
class PretrainingObjective:
    """Masked language modelling and next sentence prediction: the sum of two mean cross-entropies (d2l 15.10.1).

    The first is the mean over the masked positions of the global batch, the second over its pairs. d2l's PyTorch code
    also counts padded positions, which predict `<unk>`; its MXNet code does not.
    """

    num_masked_R: np.ndarray  # number of masked positions of each row
    num_sums = 6
    main_metrics = ("mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy")

    def __call__(
        self, model: nn.Module, batch: dict[str, torch.Tensor], rows: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mlm_loss, nsp_loss, num_correct = model(**batch)
        counts = [(batch[name] != IGNORED_LABEL).sum() for name in ("labels", "next_sentence_label")]
        sums = torch.stack([mlm_loss.detach(), nsp_loss.detach(), *num_correct, *counts])
        return mlm_loss / int(self.num_masked_R[rows].sum()) + nsp_loss / len(rows), sums

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        mlm_sum, nsp_sum, mlm_correct, nsp_correct, num_predictions, num_pairs = sums
        mlm_loss, nsp_loss = mlm_sum / num_predictions, nsp_sum / num_pairs
        return {
            "loss": mlm_loss + nsp_loss,
            "mlm_loss": mlm_loss,
            "perplexity": math.exp(min(mlm_loss, 700)),  # math.exp overflows above 709
            "mlm_accuracy": mlm_correct / num_predictions,
            "nsp_loss": nsp_loss,
            "nsp_accuracy": nsp_correct / num_pairs,
        }

    def score(self, metrics: dict[str, float]) -> float:
        return -metrics["loss"]


Objective = ClassificationObjective | PretrainingObjective
