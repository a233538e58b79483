"""What fine-tuning and pretraining do differently."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bert_snli.data.batching import PaddedPairs
from bert_snli.training.objectives import Objective


class Evaluation(NamedTuple):
    """Metrics of an evaluation, and details that are stored with the best model, such as its confusion matrix."""

    metrics: dict[str, float]
    details: dict[str, Any]


@dataclass(frozen=True)
class TrainingTask:
    """What fine-tuning and pretraining do differently."""

    model: PreTrainedModel  # is saved, with the tokenizer
    tokenizer: PreTrainedTokenizerBase
    module: nn.Module  # is trained; it holds the parameters of `model`, or faster equivalents
    objective: Objective
    pairs: PaddedPairs  # the training data
    data: str  # fingerprint of training and evaluation data
    eval_split: str
    evaluate: Callable[[], Evaluation]  # all processes call it
    # Draws the training curve from the lines of `metrics.jsonl`, the name of the split and the folder.
    plot: Callable[[list[dict[str, Any]], str, Path], None]
