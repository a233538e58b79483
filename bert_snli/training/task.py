"""What the training loop has to know about fine-tuning or pretraining."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bert_snli.data.batching import PaddedPairs
from bert_snli.training.objectives import Objective


@dataclass(frozen=True)
class TrainingTask:
    """Model, data, objective and evaluation of a run."""

    model: PreTrainedModel  # is saved, with the tokenizer
    tokenizer: PreTrainedTokenizerBase
    module: nn.Module  # is trained; it holds the parameters of `model`, or faster equivalents
    objective: Objective
    pairs: PaddedPairs  # the training data
    data_fingerprint: str  # of training and evaluation data
    eval_split: str
    # Returns metrics, and details that are stored with the best model. All processes call it.
    evaluate: Callable[[], tuple[dict[str, float], dict[str, Any]]]
    # Draws the training curve from the lines of `metrics.jsonl`, the name of the split and the folder.
    plot: Callable[[list[dict[str, Any]], str, Path], None]
