"""Two models on the same pairs, and a model against itself with its labels in another order."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score

from bert_snli.evaluation.metrics import interval
from bert_snli.evaluation.predictions import Predictions
from bert_snli.modeling.labels import D2L_LABELS

FAR_BETTER = 0.1
ENOUGH = 20  # pairs of each label: a set that lacks one says nothing of how the labels are called


def mcnemar(this: Predictions, other: Predictions) -> dict:
    """McNemar's exact test (1947): are the pairs that only one of them gets right shared evenly?"""
    only_this = int((this.right_R & ~other.right_R).sum())
    only_other = int((~this.right_R & other.right_R).sum())
    differ = only_this + only_other
    return {
        "other_accuracy": other.accuracy,
        "difference": this.accuracy - other.accuracy,
        "only_this_right": only_this,
        "only_other_right": only_other,
        "both_right": int((this.right_R & other.right_R).sum()),
        "both_wrong": int((~this.right_R & ~other.right_R).sum()),
        "p_value": float(binomtest(only_this, differ).pvalue) if differ else 1.0,
    }


def swapped_labels(predictions: Predictions) -> dict | None:
    """What the model's labels should be called if another order of them is far better, beyond chance; else None.

    Better for each label in the mean, so that a model that is too fond of one answer is not accused; sets of two labels
    cannot tell.
    """
    gold_R, predicted_R = predictions.references_R, predictions.logits.argmax(axis=1)
    if len(predictions.labels) != len(D2L_LABELS) or np.bincount(gold_R, minlength=3).min() < ENOUGH:
        return None
    recalls = {
        order: balanced_accuracy_score(gold_R, np.asarray(order)[predicted_R])
        for order in permutations(range(len(D2L_LABELS)))
    }
    best = max(recalls, key=lambda order: recalls[order])
    right, count = int((np.asarray(best)[predicted_R] == gold_R).sum()), len(gold_R)
    beyond_chance = interval(right, count)[0] > interval(int(predictions.right_R.sum()), count)[1]
    if recalls[best] - recalls[tuple(range(len(D2L_LABELS)))] < FAR_BETTER or not beyond_chance:
        return None
    return {
        "read_as": {name: D2L_LABELS[new] for name, new in zip(D2L_LABELS, best, strict=True)},
        "accuracy": right / count,
        "instead_of": predictions.accuracy,
    }


def describe_swapped_labels(swapped: dict) -> str:
    """The warning, in a line."""
    moved = " and ".join(f"{new} where the model says {old}" for old, new in swapped["read_as"].items() if old != new)
    return (
        f"the labels are probably swapped: reading {moved}, accuracy would be {swapped['accuracy']:.3f} instead of "
        f"{swapped['instead_of']:.3f}; look at id2label in the model's config.json and at how the data names its labels"
    )
