"""Analyse predictions: calibration, accuracy by slice, annotator agreement, McNemar's test and hardest pairs.

Shape suffixes: R rows, C labels of the data set.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf

import numpy as np
from datasets import Dataset
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve

from bert_snli.data.pair_encoding import NUM_SPECIAL_TOKENS
from bert_snli.data.snli import EvaluationSet
from bert_snli.evaluation.metrics import cross_entropy, measure_accuracy, softmax
from bert_snli.modeling.labels import D2L_LABELS

NUM_BINS = 15
TEMPERATURES = (0.05, 20.0)  # range of the search
# Slice name → largest value in the slice.
LENGTHS = {
    "up to 10": 10, "11 to 15": 15, "16 to 20": 20, "21 to 25": 25, "26 to 30": 30, "31 to 40": 40, "41 or more": inf,
}  # fmt: skip
OVERLAPS = {"up to 20%": 0.2, "20% to 40%": 0.4, "40% to 60%": 0.6, "60% to 80%": 0.8, "above 80%": inf}
UNKNOWN_WORDS = {"0": 0, "1": 1, "2": 2, "3 or more": inf}
AGREEMENTS = {"up to 50%": 0.5, "50% to 70%": 0.7, "70% to 90%": 0.9, "above 90%": inf}


@dataclass(frozen=True)
class Predictions:
    """The logits (R, C) for an evaluation set, in the order of its labels. `encoded` are the inputs of the model.

    If a set such as HANS has only the labels entailment and non-entailment, the logits (R, 3) are in the order of
    `D2L_LABELS`, and the predictions neutral and contradiction count as non-entailment (McCoy et al., 2019).
    """

    evaluation_set: EvaluationSet
    encoded: Dataset
    logits: np.ndarray

    @property
    def labels(self) -> list[str]:
        return self.evaluation_set.labels

    @cached_property
    def references_R(self) -> np.ndarray:
        return np.asarray(self.evaluation_set.pairs["label"])

    @cached_property
    def predictions_R(self) -> np.ndarray:
        return np.minimum(self.logits.argmax(axis=1), len(self.labels) - 1)

    @cached_property
    def is_correct_R(self) -> np.ndarray:
        return self.predictions_R == self.references_R

    def probabilities(self, temperature: float = 1.0) -> np.ndarray:
        """Return the probabilities (R, C) of the set's labels."""
        probabilities_RC = softmax(self.logits, temperature)
        if len(self.labels) == probabilities_RC.shape[1]:
            return probabilities_RC
        # Not the sum of the other two, which may be above 1 after rounding.
        return np.stack([probabilities_RC[:, 0], 1 - probabilities_RC[:, 0]], axis=1)

    def probability_of(self, label_ids_R: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        return self.probabilities(temperature)[np.arange(len(label_ids_R)), label_ids_R]

    def loss(self, temperature: float = 1.0) -> float:
        return cross_entropy(self.probabilities(temperature), self.references_R)


def calibration(predictions: Predictions) -> dict:
    """Compute the calibration error, and the error and loss at the temperature with the lowest loss (Guo et al., 2017).

    The temperature is fitted on the same pairs, so no temperature gives a lower loss on them.
    """
    minimum = minimize_scalar(lambda x: predictions.loss(np.exp(x)), bounds=np.log(TEMPERATURES), method="bounded")
    temperature = float(np.exp(minimum.x))
    confidence_R = predictions.probability_of(predictions.predictions_R)
    scaled_R = predictions.probability_of(predictions.predictions_R, temperature)
    bins = reliability_bins(predictions.is_correct_R, confidence_R)
    return {
        "expected_calibration_error": expected_calibration_error(bins),
        "mean_confidence": float(confidence_R.mean()),
        "bins": bins,
        "temperature": temperature,
        "error_at_temperature": expected_calibration_error(reliability_bins(predictions.is_correct_R, scaled_R)),
        "loss_at_temperature": predictions.loss(temperature),
    }


def reliability_bins(is_correct_R: np.ndarray, confidence_R: np.ndarray) -> list[dict]:
    """Return the mean confidence, accuracy and number of pairs of each bin that is not empty."""
    accuracies, confidences = calibration_curve(is_correct_R, confidence_R, n_bins=NUM_BINS)
    counts = np.bincount(np.searchsorted(np.linspace(0, 1, NUM_BINS + 1)[1:-1], confidence_R))
    return [
        {"confidence": float(confidence), "accuracy": float(accuracy), "pairs": int(count)}
        for confidence, accuracy, count in zip(confidences, accuracies, counts[counts > 0], strict=True)
    ]


def expected_calibration_error(bins: list[dict]) -> float:
    gaps = [abs(entry["confidence"] - entry["accuracy"]) for entry in bins]
    return float(np.average(gaps, weights=[entry["pairs"] for entry in bins]))


def accuracy_by_pair_type(predictions: Predictions, unk_token_id: int) -> dict[str, list[dict]]:
    """Compute the accuracy by length, by the share of hypothesis words in the premise, and by unknown words."""
    overlaps, unknown_counts = [], []
    for ids, segments in zip(predictions.encoded["input_ids"], predictions.encoded["token_type_ids"], strict=True):
        boundary = segments.index(1)
        premise, hypothesis = set(ids[1 : boundary - 1]) - {unk_token_id}, set(ids[boundary:-1])
        overlaps.append(len(premise & hypothesis) / max(len(hypothesis), 1))
        unknown_counts.append(ids.count(unk_token_id))
    lengths_R = np.asarray(predictions.encoded["length"]).astype(int) - NUM_SPECIAL_TOKENS
    return {
        "length": accuracy_by_slice(predictions.is_correct_R, lengths_R, LENGTHS),
        "word_overlap": accuracy_by_slice(predictions.is_correct_R, np.array(overlaps), OVERLAPS),
        "unknown_words": accuracy_by_slice(predictions.is_correct_R, np.array(unknown_counts), UNKNOWN_WORDS),
    }


def accuracy_by_slice(is_correct_R: np.ndarray, values_R: np.ndarray, slices: Mapping[str, float]) -> list[dict]:
    """Compute the accuracy of each non-empty slice; `slices` maps slice names to largest values."""
    slices_R = np.searchsorted(list(slices.values()), values_R)
    return [
        {"slice": name, **measure_accuracy(is_correct_R[slices_R == number])}
        for number, name in enumerate(slices)
        if (slices_R == number).any()
    ]


def annotator_agreement(predictions: Predictions) -> dict | None:
    """Compute how often an annotator agrees with the gold label and with the model. Return None without votes."""
    pairs = predictions.evaluation_set.pairs
    if "votes" not in pairs.column_names or predictions.labels != list(D2L_LABELS):
        return None
    votes_R3 = np.asarray(pairs["votes"])
    rows = np.flatnonzero(votes_R3.sum(axis=1))
    if not len(rows):
        return None
    votes_of_gold_R = votes_R3[rows, predictions.references_R[rows]] / votes_R3[rows].sum(axis=1)
    votes_of_model_R = votes_R3[rows, predictions.predictions_R[rows]] / votes_R3[rows].sum(axis=1)
    return {
        "pairs": len(rows),
        "one_annotator_agrees_with_gold": float(votes_of_gold_R.mean()),
        "one_annotator_agrees_with_model": float(votes_of_model_R.mean()),
        "accuracy_by_agreement": accuracy_by_slice(predictions.is_correct_R[rows], votes_of_gold_R, AGREEMENTS),
    }


def mcnemar_test(this: Predictions, other: Predictions) -> dict:
    """Compare two models on the same pairs with McNemar's exact test (1947)."""
    this_R, other_R = this.is_correct_R, other.is_correct_R
    only_this, only_other = int((this_R & ~other_R).sum()), int((~this_R & other_R).sum())
    num_different = only_this + only_other
    return {
        "other_accuracy": float(other_R.mean()),
        "difference": float(this_R.mean()) - float(other_R.mean()),
        "only_this_right": only_this,
        "only_other_right": only_other,
        "both_right": int((this_R & other_R).sum()),
        "both_wrong": int((~this_R & ~other_R).sum()),
        "p_value": float(binomtest(only_this, num_different).pvalue) if num_different else 1.0,
    }


def hardest_pairs(predictions: Predictions, count: int = 20) -> list[dict]:
    """Return the wrong predictions with the lowest probability of the gold label."""
    texts = predictions.evaluation_set.pairs.select_columns(["premise", "hypothesis"])
    gold_probability_R = predictions.probability_of(predictions.references_R)
    order = np.argsort(gold_probability_R, kind="stable")
    return [
        {
            **texts[row],
            "gold": predictions.labels[predictions.references_R[row]],
            "predicted": predictions.labels[predictions.predictions_R[row]],
            "probability_of_gold": float(gold_probability_R[row]),
        }
        for row in order[~predictions.is_correct_R[order]][:count].tolist()
    ]
