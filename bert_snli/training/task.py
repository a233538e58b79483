"""The parts of a run that differ between fine-tuning and pretraining."""

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

    model: PreTrainedModel  # the model that is saved
    tokenizer: PreTrainedTokenizerBase
    module: nn.Module  # the module that is trained: `model`, or a faster module with its parameters
    objective: Objective
    pairs: PaddedPairs  # the training data
    data_fingerprint: str  # hash of the training and evaluation data
    eval_split: str
    # Returns metrics, and details that are stored with the best model. All processes call it.
    evaluate: Callable[[], tuple[dict[str, float], dict[str, Any]]]
    # Draws the training curve from the lines of `metrics.jsonl`, the name of the split and the folder.
    plot: Callable[[list[dict[str, Any]], str, Path], None]
