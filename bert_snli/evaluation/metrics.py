"""Metrics as `evaluate` modules that need no network, computed by scikit-learn and SciPy, spoken by label name."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import scipy.special
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, precision_recall_fscore_support

from bert_snli.errors import BertSnliError
from bert_snli.modeling.labels import D2L_LABELS


class _LabelMetric(evaluate.Metric):
    """A metric of `predictions` against `references`, both names of labels; `labels` are those that there are."""

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
    """Share of pairs whose label was predicted, with its 95 % interval (Wilson)."""

    def _compute(self, predictions, references, labels=D2L_LABELS) -> dict:
        right = int(accuracy_score(references, predictions, normalize=False))
        return {"accuracy": right / len(references), "accuracy_interval": interval(right, len(references))}


class MacroF1(_LabelMetric):
    """Mean of the harmonic means of precision and recall, over the labels that are there or were predicted."""

    def _compute(self, predictions, references, labels=D2L_LABELS) -> dict[str, float]:
        score = f1_score(references, predictions, average="macro", zero_division=0)
        return {"macro_f1": float(score)}


class PerLabel(_LabelMetric):
    """Precision, recall, F1 and number of pairs of each label."""

    def _compute(self, predictions, references, labels=D2L_LABELS) -> dict[str, dict]:
        columns = precision_recall_fscore_support(references, predictions, labels=list(labels), zero_division=0)
        return {
            "per_label": {
                name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
                for name, p, r, f, n in zip(labels, *columns, strict=True)
            }
        }


class ConfusionMatrix(_LabelMetric):
    """How many pairs of each label (outer) got each label (inner)."""

    def _compute(self, predictions, references, labels=D2L_LABELS) -> dict[str, dict]:
        matrix = confusion_matrix(references, predictions, labels=list(labels))
        return {
            "confusion_matrix": {
                gold: dict(zip(labels, map(int, row), strict=True)) for gold, row in zip(labels, matrix, strict=True)
            }
        }


def interval(right: int, count: int) -> list[float]:
    """The 95 % interval of a share (Wilson, 1927): its lower and upper end."""
    ends = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return [float(ends.low), float(ends.high)]


def probabilities_of(logits_RC: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The softmax of logits over a temperature, in float64.

    Raises:
        BertSnliError: a logit is not finite.
    """
    if not np.isfinite(logits_RC).all():
        raise BertSnliError("the model's predictions are not finite numbers; it has diverged: train with a lower rate")
    return scipy.special.softmax(logits_RC.astype(np.float64) / temperature, axis=1)


def label_metrics(predictions: Sequence[str], references: Sequence[str], labels: Sequence[str]) -> dict:
    """Accuracy with its interval, macro F1, per-label figures and confusion matrix, of names of labels."""
    modules = [metric(keep_in_memory=True) for metric in (Accuracy, MacroF1, PerLabel, ConfusionMatrix)]
    return evaluate.combine(modules).compute(predictions=predictions, references=references, labels=list(labels))


def nli_metrics(logits_RC: np.ndarray, references_R: np.ndarray, label_names: Sequence[str]) -> dict:
    """Loss and `label_metrics`; logits and the numbers of the references are in the order of `label_names`.

    Raises:
        BertSnliError: a logit is not finite.
    """
    names = np.asarray(label_names)
    probabilities_RC = probabilities_of(logits_RC)
    loss = log_loss(references_R, probabilities_RC, labels=range(len(names)))
    predictions_R = logits_RC.argmax(axis=1)
    return {
        "loss": float(loss),
        **label_metrics(names[predictions_R].tolist(), names[references_R].tolist(), D2L_LABELS),
    }
