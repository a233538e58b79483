"""Predictions of a model on a data set, with the gold labels, all in the order of `D2L_LABELS`.

A two-way set (HANS) asks only whether the hypothesis follows. Then contradiction and neutral count as one answer: the
most probable of the three labels is taken, and is `non-entailment` unless it is entailment (McCoy et al., 2019).

Shape suffixes: R rows, C the labels of the set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bert_snli.data.pair_encoding import PairEncoder, encode_pairs
from bert_snli.data.snli import EvaluationSet
from bert_snli.evaluation.metrics import probabilities_of
from bert_snli.inference import LogitsFunction, predict_logits
from bert_snli.modeling import D2LBertForSequenceClassification
from bert_snli.modeling.labels import D2L_LABELS


@dataclass(frozen=True)
class Predictions:
    """`logits` (R, 3) of the pairs in `evaluation_set`, encoded as `encoded`."""

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
        return self.merged(self.logits.argmax(axis=1))

    @cached_property
    def right_R(self) -> np.ndarray:
        return self.predictions_R == self.references_R

    @cached_property
    def accuracy(self) -> float:
        return float(self.right_R.mean())

    @cached_property
    def confidence_R(self) -> np.ndarray:
        """Probability of the label that was predicted."""
        return np.take_along_axis(self.probabilities(), self.predictions_R[:, None], axis=1)[:, 0]

    def merged(self, numbers_R: np.ndarray) -> np.ndarray:
        """Numbers of the three labels → numbers of the set's labels."""
        return np.minimum(numbers_R, len(self.labels) - 1)

    def probabilities(self, temperature: float = 1.0) -> np.ndarray:
        """Probabilities (R, C) of the set's labels."""
        probabilities_R3 = probabilities_of(self.logits, temperature)
        if len(self.labels) == len(D2L_LABELS):
            return probabilities_R3
        # Not the sum of the other two, which rounding can bring above 1.
        return np.stack([probabilities_R3[:, 0], 1 - probabilities_R3[:, 0]], axis=1)

    def names(self, numbers_R: np.ndarray) -> list[str]:
        """Numbers of the set's labels → their names."""
        return np.asarray(self.labels)[numbers_R].tolist()


def predict_set(
    classifier: D2LBertForSequenceClassification | LogitsFunction,
    tokenizer: PreTrainedTokenizerBase,
    evaluation_set: EvaluationSet,
    encoder: PairEncoder,
    model_labels: list[str],
    *,
    batch_size: int,
) -> Predictions:
    """A classifier's predictions; `model_labels` are its labels in the order of its logits."""
    encoded = encode_pairs(evaluation_set.pairs, encoder)
    logits = predict_logits(classifier, encoded, pad_token_id=tokenizer.pad_token_id, batch_size=batch_size)
    in_our_order = [model_labels.index(label) for label in D2L_LABELS]
    return Predictions(evaluation_set, encoded, logits[:, in_our_order])
