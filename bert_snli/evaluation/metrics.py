"""Metrics as `evaluate` modules that need no network, computed by scikit-learn, spoken by label name."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import scipy.special
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, precision_recall_fscore_support

from bert_snli.errors import BertSnliError
from bert_snli.labels import BOOK_LABELS

NAMES = list(BOOK_LABELS)


class _LabelMetric(evaluate.Metric):
    """A metric of `predictions` against `references`, both names of labels."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="predictions, references: label names",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )


class Accuracy(_LabelMetric):
    """Share of pairs whose label was predicted."""

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(_LabelMetric):
    """Mean over the labels of the harmonic mean of precision and recall."""

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"macro_f1": float(f1_score(references, predictions, labels=NAMES, average="macro", zero_division=0))}


class PerLabel(_LabelMetric):
    """Precision, recall, F1 and number of pairs of each label."""

    def _compute(self, predictions, references) -> dict[str, dict]:
        columns = precision_recall_fscore_support(references, predictions, labels=NAMES, zero_division=0)
        return {
            "per_label": {
                name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
                for name, p, r, f, n in zip(NAMES, *columns, strict=True)
            }
        }


class ConfusionMatrix(_LabelMetric):
    """How many pairs of each label (outer) got each label (inner)."""

    def _compute(self, predictions, references) -> dict[str, dict]:
        matrix = confusion_matrix(references, predictions, labels=NAMES)
        return {
            "confusion_matrix": {
                gold: dict(zip(NAMES, map(int, row), strict=True)) for gold, row in zip(NAMES, matrix, strict=True)
            }
        }


def nli_metrics(logits: np.ndarray, references: np.ndarray, label_names: Sequence[str]) -> dict:
    """Loss, accuracy, macro F1, per-label figures and confusion matrix.

    `logits` (R, 3) and the numbers in `references` (R,) are in the order of `label_names`.

    Raises:
        BertSnliError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise BertSnliError("the model's answers are not finite numbers; it has diverged: train with a lower rate")
    names = np.asarray(label_names)
    modules = [metric(keep_in_memory=True) for metric in (Accuracy, MacroF1, PerLabel, ConfusionMatrix)]
    results = evaluate.combine(modules).compute(
        predictions=names[logits.argmax(axis=1)].tolist(), references=names[references].tolist()
    )
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    loss = log_loss(references, probabilities, labels=range(len(names)))
    return {"loss": float(loss), **results}
