"""A fine-tuned model to evaluate, and its predictions on a data set next to the gold labels.

Labels are in the order of `D2L_LABELS`. A two-way set (HANS) asks only whether the hypothesis follows. There the most
probable of the three labels counts as `non-entailment` unless it is entailment (McCoy et al., 2019).

Shape suffixes: R rows, C the labels of the set.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import Dataset

from bert_snli.data.pair_encoding import encode_pairs, encoder_of
from bert_snli.data.snli import EvaluationSet
from bert_snli.evaluation.metrics import cross_entropy, softmax
from bert_snli.files import ONNX_FILE, WEIGHTS, sha256_of_file
from bert_snli.inference import OnnxClassifier, label_names, load_tokenizer, open_classifier, predict_logits
from bert_snli.modeling.labels import D2L_LABELS


@dataclass(frozen=True)
class Predictions:
    """`logits` (R, 3) of the pairs in `evaluation_set`; `encoded` are the model's inputs."""

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
        """The predicted label ids; in a two-way set contradiction and neutral are both id 1."""
        return np.minimum(self.logits.argmax(axis=1), len(self.labels) - 1)

    @cached_property
    def is_correct_R(self) -> np.ndarray:
        return self.predictions_R == self.references_R

    def probabilities(self, temperature: float = 1.0) -> np.ndarray:
        """Return the probabilities (R, C) of the set's labels."""
        probabilities_R3 = softmax(self.logits, temperature)
        if len(self.labels) == len(D2L_LABELS):
            return probabilities_R3
        # The sum of the other two could be above 1 by rounding.
        return np.stack([probabilities_R3[:, 0], 1 - probabilities_R3[:, 0]], axis=1)

    def probability_of(self, label_ids_R: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        return self.probabilities(temperature)[np.arange(len(label_ids_R)), label_ids_R]

    def loss(self, temperature: float = 1.0) -> float:
        return cross_entropy(self.probabilities(temperature), self.references_R)

    def label_names(self, label_ids_R: np.ndarray) -> list[str]:
        return np.asarray(self.labels)[label_ids_R].tolist()


class EvaluatedModel:
    """A fine-tuned model to evaluate.

    `encoding` are `text_source`, and `max_length` and `truncation` if they are not those of fine-tuning.
    """

    def __init__(self, model_name_or_path: str, *, backend: str | None = None, batch_size: int = 256, **encoding):
        self.name = model_name_or_path
        self.classifier = open_classifier(model_name_or_path, backend)
        self.backend = "onnx" if isinstance(self.classifier, OnnxClassifier) else "torch"
        self.labels = label_names(self.classifier.config, model_name_or_path)
        self.tokenizer = load_tokenizer(model_name_or_path)
        self.encoder = encoder_of(self.classifier.config, self.tokenizer, **encoding)
        self.batch_size = batch_size
        weights = Path(model_name_or_path) / (ONNX_FILE if self.backend == "onnx" else WEIGHTS)
        self.weights_sha256 = sha256_of_file(weights) if weights.is_file() else None  # None for a model on the Hub

    def predict(self, evaluation_set: EvaluationSet) -> Predictions:
        encoded = encode_pairs(evaluation_set.pairs, self.encoder)
        options = {"pad_token_id": self.tokenizer.pad_token_id, "batch_size": self.batch_size}
        logits = predict_logits(self.classifier, encoded, **options)
        return Predictions(evaluation_set, encoded, logits[:, [self.labels.index(label) for label in D2L_LABELS]])
