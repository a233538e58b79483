"""Where a model is right and where it is not: accuracy over kinds of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from bert_snli.data.pair_encoding import NUM_SPECIAL_TOKENS
from bert_snli.evaluation.metrics import interval
from bert_snli.evaluation.predictions import Predictions
from bert_snli.modeling.labels import D2L_LABELS

# Inner edges: a value belongs to the slice that ends at it.
LENGTHS = (10, 15, 20, 25, 30, 40)  # tokens of both sentences
SHARES = (0.2, 0.4, 0.6, 0.8)  # of the hypothesis's words
COUNTS = (0, 1, 2)  # unknown words
AGREEMENTS = (0.5, 0.7, 0.9)  # of the annotators with the gold label


def slices(predictions: Predictions, unknown_id: int) -> dict[str, list[dict]]:
    """Accuracy by length, by the share of hypothesis words that the premise has, and by unknown words in the pair."""
    lengths_R = np.asarray(predictions.encoded["length"]).astype(int) - NUM_SPECIAL_TOKENS
    overlap, unknown = [], []
    for ids, segments in zip(predictions.encoded["input_ids"], predictions.encoded["token_type_ids"], strict=True):
        split = segments.index(1)
        premise, hypothesis = set(ids[1 : split - 1]) - {unknown_id}, set(ids[split:-1])
        overlap.append(len(premise & hypothesis) / max(len(hypothesis), 1))
        unknown.append(ids.count(unknown_id))
    return {
        "length": accuracy_by(predictions.right_R, lengths_R, LENGTHS, "{:g}", first="up to {}", step=1),
        "word_overlap": accuracy_by(predictions.right_R, np.array(overlap), SHARES, "{:.0%}", first="up to {}"),
        "unknown_words": accuracy_by(predictions.right_R, np.array(unknown), COUNTS, "{:g}", first="{}", step=1),
    }


def accuracy_by(
    right_R: np.ndarray, values_R: np.ndarray, edges: Sequence[float], shown: str, *, first: str, step: float = 0
) -> list[dict]:
    """Accuracy, its interval and number of pairs of each slice that holds any.

    A slice runs from above one edge to the next; `shown` formats an edge, and `step` is 1 for whole numbers, whose
    slices are named by the numbers in them.
    """
    names = [first.format(shown.format(edges[0]))]
    for low, high in pairwise(edges):
        lowest, highest = shown.format(low + step), shown.format(high)
        names.append(highest if lowest == highest and step else f"{lowest} to {highest}")
    names.append(f"{shown.format(edges[-1] + step)} or more" if step else f"above {shown.format(edges[-1])}")
    places_R = np.searchsorted(edges, values_R)
    entries = []
    for place, name in enumerate(names):
        chosen = right_R[places_R == place]
        if len(chosen):
            right = int(chosen.sum())
            entries.append(
                {
                    "slice": name,
                    "pairs": len(chosen),
                    "accuracy": right / len(chosen),
                    "accuracy_interval": interval(right, len(chosen)),
                }
            )
    return entries


def annotators(predictions: Predictions) -> dict | None:
    """How the annotators agree with the gold label and with each other's majority; None without their labels."""
    pairs = predictions.evaluation_set.pairs
    if "votes" not in pairs.column_names or len(predictions.labels) != len(D2L_LABELS):
        return None
    votes_R3 = np.asarray(pairs["votes"])
    asked = votes_R3.sum(axis=1) > 0
    if not asked.any():
        return None
    shares_R3 = votes_R3[asked] / votes_R3[asked].sum(axis=1, keepdims=True)
    with_gold_R = np.take_along_axis(shares_R3, predictions.references_R[asked, None], axis=1)[:, 0]
    with_model_R = np.take_along_axis(shares_R3, predictions.predictions_R[asked, None], axis=1)[:, 0]
    return {
        "pairs": int(asked.sum()),
        "one_annotator_agrees_with_gold": float(with_gold_R.mean()),
        "one_annotator_agrees_with_model": float(with_model_R.mean()),
        "accuracy_by_agreement": accuracy_by(
            predictions.right_R[asked], with_gold_R, AGREEMENTS, "{:.0%}", first="up to {}"
        ),
    }


def hardest(predictions: Predictions, count: int = 20) -> list[dict]:
    """The wrong predictions whose gold label the model gives the least probability."""
    pairs = predictions.evaluation_set.pairs
    of_gold_R = np.take_along_axis(predictions.probabilities(), predictions.references_R[:, None], axis=1)[:, 0]
    predicted = predictions.names(predictions.predictions_R)
    wrong = np.flatnonzero(~predictions.right_R)
    return [
        {
            "premise": pairs[row]["premise"],
            "hypothesis": pairs[row]["hypothesis"],
            "gold": predictions.labels[predictions.references_R[row]],
            "predicted": predicted[row],
            "probability_of_gold": float(of_gold_R[row]),
        }
        for row in wrong[np.argsort(of_gold_R[wrong], kind="stable")[:count]].tolist()
    ]
