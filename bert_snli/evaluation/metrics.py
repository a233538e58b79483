"""Classification metrics as an `evaluate` module that needs no network. scikit-learn and SciPy compute them.

Shape suffixes: R rows, C labels.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import scipy.special
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_recall_fscore_support

from bert_snli.errors import BertSnliError
from bert_snli.modeling.labels import D2L_LABELS


class ClassificationMetrics(evaluate.Metric):
    """Accuracy, macro F1, per-label precision, recall and F1, and the confusion matrix, all by label name.

    `labels` are the rows and columns of the matrix. Macro F1 is the mean over the labels that occur.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(features))

    def _compute(self, predictions, references, labels=D2L_LABELS) -> dict:
        columns = precision_recall_fscore_support(references, predictions, labels=labels, zero_division=0)
        matrix = confusion_matrix(references, predictions, labels=labels).tolist()
        return {
            **measure_accuracy(np.asarray(predictions) == np.asarray(references)),
            "macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0)),
            "per_label": {
                label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
                for label, p, r, f, n in zip(labels, *columns, strict=True)
            },
            "confusion_matrix": {
                gold: dict(zip(labels, counts, strict=True)) for gold, counts in zip(labels, matrix, strict=True)
            },
        }


def label_metrics(predictions: Sequence[str], references: Sequence[str], labels: Sequence[str]) -> dict:
    """Compute `ClassificationMetrics` from label names."""
    metrics = ClassificationMetrics(keep_in_memory=True)
    return metrics.compute(predictions=predictions, references=references, labels=labels)


def nli_metrics(logits_RC: np.ndarray, references_R: np.ndarray, label_names: Sequence[str]) -> dict:
    """Compute the loss and `label_metrics`; logits and label ids are in the order of `label_names`."""
    names = np.asarray(label_names)
    predictions, references = names[logits_RC.argmax(axis=1)].tolist(), names[references_R].tolist()
    loss = cross_entropy(softmax(logits_RC), references_R)
    return {"loss": loss, **label_metrics(predictions, references, label_names)}


def measure_accuracy(is_correct_R: np.ndarray) -> dict:
    """Return the number of pairs, the accuracy, and the two limits of its 95 % interval (Wilson, 1927)."""
    num_correct, num_pairs = int(is_correct_R.sum()), len(is_correct_R)
    interval = binomtest(num_correct, num_pairs).proportion_ci(0.95, method="wilson")
    return {
        "pairs": num_pairs,
        "accuracy": num_correct / num_pairs,
        "accuracy_interval": [float(interval.low), float(interval.high)],
    }


def softmax(logits_RC: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the probabilities of logits divided by a temperature, in float64."""
    if not np.isfinite(logits_RC).all():
        raise BertSnliError("logits: some are NaN or infinite; train the model again with a lower learning rate")
    return scipy.special.softmax(logits_RC.astype(np.float64) / temperature, axis=1)


def cross_entropy(probabilities_RC: np.ndarray, references_R: np.ndarray) -> float:
    """Return the mean negative log probability of the gold labels, in nats."""
    return float(log_loss(references_R, probabilities_RC, labels=range(probabilities_RC.shape[1])))
