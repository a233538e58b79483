"""Two models on the same pairs, and a model against itself with its labels in another order."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from scipy.stats import binomtest

from bert_snli.evaluation.answers import Answers
from bert_snli.evaluation.metrics import interval
from bert_snli.labels import BOOK_LABELS

FAR_BETTER = 0.1  # accuracy that no honest model gains when its labels are permuted


def mcnemar(this: Answers, other: Answers) -> dict:
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


def swapped_labels(answers: Answers) -> dict | None:
    """What the model's labels should be called if another order of them is far better, beyond chance; else None."""
    three_R = answers.logits.argmax(axis=1)
    accuracies = {
        order: float((answers.merged(np.asarray(order)[three_R]) == answers.references_R).mean())
        for order in permutations(range(len(BOOK_LABELS)))
    }
    best = max(accuracies, key=lambda order: accuracies[order])
    count = len(three_R)
    lowest, highest = (interval(round(accuracies[best] * count), count), interval(int(answers.right_R.sum()), count))
    if accuracies[best] - answers.accuracy < FAR_BETTER or lowest[0] <= highest[1]:
        return None
    return {
        "read_as": {name: BOOK_LABELS[new] for name, new in zip(BOOK_LABELS, best, strict=True)},
        "accuracy": accuracies[best],
        "instead_of": answers.accuracy,
    }


def say_swapped(swapped: dict) -> str:
    """The warning, in a line."""
    moved = ", ".join(f"'{old}' as {new}" for old, new in swapped["read_as"].items() if old != new)
    return (
        f"the labels are probably swapped: with the model's answers read as {moved}, accuracy would be "
        f"{swapped['accuracy']:.3f} instead of {swapped['instead_of']:.3f}; look at id2label in the model's "
        "config.json and at how the data names its labels"
    )
