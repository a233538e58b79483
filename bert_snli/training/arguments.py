"""The options of training, as dataclasses: each field is an option of the command and a key of a recipe.

Names are those of `transformers.TrainingArguments` wherever the thing is the same. Batch sizes are global.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

import yaml

from bert_snli.choices import (
    CLASSIFIER_HEADS,
    HUB_ID,
    OPTIMIZERS,
    SAMPLING_STRATEGIES,
    SCHEDULERS,
    TEXT_SOURCES,
    TRACKERS,
    TRUNCATIONS,
)
from bert_snli.errors import BertSnliError
from bert_snli.files import write_atomically

# How a run is started, which is no part of what it does.
START_OPTIONS = (
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
)
# What may differ when a run is resumed: how long it is, what is written on the way, and, to rounding, the means.
LENGTH = ("num_train_epochs", "max_steps", "early_stopping_patience")
WRITTEN = ("output_dir", "logging_steps", "save_steps", "save_total_limit", "report_to")
NUMERIC_OPTIONS = (
    "num_micro_batches",
    "per_device_eval_batch_size",
    "mixed_precision",
    "attn_implementation",
    "pad_to_max_length",
    "torch_compile",
    "preprocessing_num_workers",
    "detect_anomalies",
)


def option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A field with the help that its command-line option shows."""
    metadata: dict[str, Any] = {"help": help}
    if choices:
        metadata["choices"] = choices
    return field(default=default, metadata=metadata)


@dataclass
class BaseTrainingArguments:
    """Options of every training command.

    Raises:
        BertSnliError: a value that makes no sense, with the option's name and what to give instead.
    """

    required: ClassVar[tuple[str, ...]] = ("output_dir",)

    model_name_or_path: str = option("", "Model folder or hub id to start from.")
    dataset_name_or_path: str = option(HUB_ID, "What to train on.")
    output_dir: str = option("", "Folder for the trained model, its metrics and its curve.")
    overwrite_output_dir: bool = option(
        False,
        "Write into an output folder that already holds files; checkpoints and results of its earlier run are removed.",
    )

    text_source: str = option(
        "raw",
        "Sentences of SNLI to read: 'raw' as typed, or 'parse', the parse leaves that the book reads.",
        TEXT_SOURCES,
    )
    max_length: int = option(128, "Longest pair in tokens, the three special ones included.")
    max_train_samples: int | None = option(None, "Train on the first so many pairs only.")
    max_eval_samples: int | None = option(None, "Evaluate on the first so many pairs only.")
    preprocessing_num_workers: int | None = option(None, "Processes that encode the text.")
    dropout: float | None = option(None, "Dropout rate of hidden states and attention (default: the model's own).")

    num_train_epochs: int = option(4, "Times that every training pair is seen.")
    max_steps: int = option(-1, "If positive: stop after so many updates, whatever num_train_epochs says.")
    train_batch_size: int = option(256, "Pairs per update, over all processes and accumulation passes.")
    train_batch_tokens: int | None = option(
        None, "Tokens per update, padding included, in place of train_batch_size: long pairs come in smaller batches."
    )
    per_device_eval_batch_size: int = option(256, "Pairs per evaluation batch of one process.")
    num_micro_batches: int = option(1, "Micro-batches that the train_batch_size pairs of an update are split into.")
    train_sampling_strategy: str = option(
        "group_by_length", "Batches of like length, or 'random' as in the book.", SAMPLING_STRATEGIES
    )

    optim: str = option("adamw_torch_fused", "Optimizer.", OPTIMIZERS)
    learning_rate: float = option(1e-3, "Peak learning rate.")
    lr_scheduler_type: str = option("linear", "How the rate falls after the warm-up.", SCHEDULERS)
    warmup_steps: float = option(0.06, "Updates of linear warm-up; below 1, a share of all updates.")
    weight_decay: float = option(0.01, "Weight decay of all but biases and LayerNorms.")
    max_grad_norm: float = option(1.0, "Largest norm of the gradient; 0 does not clip.")
    mixed_precision: str = option(
        "auto",
        "'auto': what `accelerate launch` is told, if not 'no', or bf16 where this machine multiplies it 1.5 times as "
        "fast. fp16 needs a GPU. Evaluation is in fp32.",
        ("auto", "no", "bf16", "fp16"),
    )
    seed: int = option(42, "Seed of fresh weights, the order of the pairs, masks and dropout.")

    load_best_model_at_end: bool = option(True, "Keep the epoch that evaluates best; otherwise the last.")
    early_stopping_patience: int | None = option(
        None, "Stop after so many evaluations in a row that are no better than the best before."
    )
    detect_anomalies: bool = option(
        False, "Name the first operation whose gradient is not a number, and look for one after each pass; slow."
    )
    logging_steps: int = option(50, "Updates between two lines of metrics.jsonl.")
    save_steps: int = option(0, "Updates between two checkpoints; 0 writes none, unless a signal stops the run.")
    save_total_limit: int = option(2, "Newest checkpoints kept; the best model is in each of them.")
    resume_from_checkpoint: str | None = option(
        None,
        "Checkpoint folder to go on from, or 'auto': the newest whole one in output_dir, or the start where there is "
        "none yet.",
    )
    report_to: str = option("none", "Experiment tracker besides metrics.jsonl.", TRACKERS)

    def __post_init__(self):
        for name in self.required:
            if not getattr(self, name):
                raise BertSnliError(f"--{name}: is required; give it on the command line or in the recipe")
        for entry in fields(self):
            choices, value = entry.metadata.get("choices"), getattr(self, entry.name)
            if choices and value is not None and value not in choices:
                raise BertSnliError(f"--{entry.name} {value}: choose from {', '.join(choices)}")
        for entry in fields(self):
            self._require(entry.name, lambda value: not isinstance(value, float) or isfinite(value), "give a number")
        for name in (
            "max_train_samples",
            "max_eval_samples",
            "preprocessing_num_workers",
            "num_train_epochs",
            "train_batch_size",
            "train_batch_tokens",
            "per_device_eval_batch_size",
            "num_micro_batches",
            "logging_steps",
            "save_total_limit",
            "early_stopping_patience",
        ):
            self._require(name, lambda value: value >= 1, "give 1 or more")
        passes = self.num_micro_batches
        if passes > self.train_batch_size and self.train_batch_tokens is None:
            raise BertSnliError(f"--num_micro_batches {passes}: more micro-batches than train_batch_size has pairs")
        self._require("learning_rate", lambda value: value > 0, "give a number above 0")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "save_steps"):
            self._require(name, lambda value: value >= 0, "give 0 or more")
        self._require("seed", lambda value: 0 <= value < 2**32, "give a number from 0 to below 2**32")
        self._require("dropout", lambda value: 0 <= value < 1, "give a rate from 0 to below 1")

    def _require(self, name: str, holds, remedy: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise BertSnliError(f"--{name} {value}: {remedy}")

    def save(self, path: Path) -> None:
        """Write the options as YAML, so that `--config` repeats the run: all but those that say how it was started."""
        options = {name: value for name, value in asdict(self).items() if name not in START_OPTIONS}
        write_atomically(path, yaml.safe_dump(options, sort_keys=False))

    def to_resume_with(self) -> dict[str, Any]:
        """The options that a run is resumed with as they were."""
        free = {*START_OPTIONS, *LENGTH, *WRITTEN, *NUMERIC_OPTIONS}
        return {name: value for name, value in asdict(self).items() if name not in free}

    def means(self) -> dict[str, Any]:
        """The options that change what is computed by rounding, the draws of dropout and the length of the schedule."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name in (*NUMERIC_OPTIONS, "num_train_epochs", "max_steps")
        }


@dataclass
class FinetuneArguments(BaseTrainingArguments):
    """Options of `finetune`.

    Raises:
        BertSnliError: as `BaseTrainingArguments`.
    """

    required: ClassVar[tuple[str, ...]] = ("model_name_or_path", "output_dir")

    model_name_or_path: str = option("", "Model folder or hub id to start from (see: bert-snli convert).")
    dataset_name_or_path: str = option(
        HUB_ID, "Hub id, Stanford's zip, a folder of its jsonl or txt files or of parquet files, or 'sample'."
    )
    train_file: str | None = option(
        None,
        "File of pairs to train on in place of the dataset's training split: .jsonl, .parquet, .csv or .tsv with "
        "premise, hypothesis and label, or scores: a teacher's probability of each label, as bert-snli predict writes.",
    )
    output_dir: str = option("", "Folder for the fine-tuned model, its metrics and its curve.")
    max_length: int = option(128, "Longest pair in tokens, the three special ones included; longer ones are truncated.")
    truncation: str = option(
        "longest",
        "How pairs that are too long are cut: 'longest' from the longer side as the book does, 'ratio' in proportion, "
        "'only_first', 'only_second', or 'do_not_truncate', an error.",
        TRUNCATIONS,
    )
    classifier_head: str | None = option(
        None,
        "'pooler': the book's, faster to train, which export can write; 'mlp': that of the chapter's first "
        "form; 'matching': the pooled output and both sentences' means, their difference and "
        "product (default: matching; of a start that is a classifier, its own).",
        CLASSIFIER_HEADS,
    )
    attn_implementation: str | None = option(
        None,
        "Attention of the model; by default 'eager' on CPU, which is faster at SNLI's lengths, else 'sdpa'.",
        ("eager", "sdpa"),
    )
    pad_to_max_length: bool = option(False, "Pad every batch to max_length as the book does: slower, same numbers.")
    loss_reduction: str = option(
        "mean", "Loss of a batch: 'mean' of its pairs, or their 'sum' as in the book.", ("mean", "sum")
    )
    fast_forward: bool = option(
        True,
        "Train without products that the logits do not need, and without words that the data do not hold: the same to "
        "rounding, but for other random numbers of dropout on a CPU.",
    )
    torch_compile: bool = option(
        False,
        "Compile the model with torch.compile, with dynamic batch shapes. Intended for GPUs.",
    )
    eval_split: str = option(
        "validation", "Split evaluated after each epoch; the book uses 'test'.", ("validation", "test")
    )
    push_to_hub: bool = option(False, "Put the finished model on the hub, as bert-snli push does.")
    hub_model_id: str | None = option(None, "Where push_to_hub puts it: user/name or organisation/name.")
    hub_private_repo: bool = option(False, "For your eyes only, if the repository is a new one.")

    def __post_init__(self):
        super().__post_init__()
        if self.push_to_hub and not self.hub_model_id:
            raise BertSnliError("--push_to_hub: needs --hub_model_id user/name")
        if not self.push_to_hub and (self.hub_model_id or self.hub_private_repo):
            name = "hub_model_id" if self.hub_model_id else "hub_private_repo"
            raise BertSnliError(f"--{name}: goes with --push_to_hub; add that, or leave this out")
        if self.train_batch_tokens and self.pad_to_max_length:
            raise BertSnliError("--train_batch_tokens: cannot be combined with --pad_to_max_length; remove one of them")


def recipe_arguments(path: Path, recipe_class: type[BaseTrainingArguments], command: str) -> list[str]:
    """The options in a YAML recipe, as command-line arguments of `command`, so that one parser checks both.

    Raises:
        BertSnliError: not there, not YAML, or not a table of options and plain values.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BertSnliError(f"--config {path}: {error.strerror}; give a YAML recipe") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise BertSnliError(f"--config {path}: not YAML ({reason}); give a YAML recipe") from error
    if not isinstance(content, dict):
        raise BertSnliError(f"--config {path}: holds no options; write lines such as 'learning_rate: 1e-4'")
    known = {entry.name for entry in fields(recipe_class)}
    arguments: list[str] = []
    for key, value in content.items():
        if key not in known:
            raise BertSnliError(f"--config {path}: unknown option {key!r}; see {command} --help")
        if value is not None:
            arguments += [f"--{key}", str(value)]
    return arguments
