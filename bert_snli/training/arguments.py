"""The options of training as dataclasses: each field is an option of the command and a key of a YAML recipe.

Names are those of `transformers.TrainingArguments` where the meaning is the same. Batch sizes are global.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

import yaml

from bert_snli import choices
from bert_snli.errors import BertSnliError
from bert_snli.files import write_atomically

# Options that say how a run is started. They are not part of its recipe.
NOT_IN_RECIPE = "overwrite_output_dir resume_from_checkpoint push_to_hub hub_model_id hub_private_repo".split()
# Options that do not affect an update.
OUTPUT_OPTIONS = "output_dir logging_steps save_steps save_total_limit report_to".split()
# Options that may change when a run is resumed. Resume is then not bit-exact.
CHANGEABLE_ON_RESUME = """
    num_train_epochs max_steps num_micro_batches per_device_eval_batch_size mixed_precision attn_implementation
    pad_to_max_length torch_compile
""".split()
AT_LEAST_ONE = """
    max_train_samples max_eval_samples num_train_epochs train_batch_size per_device_eval_batch_size num_micro_batches
    logging_steps save_total_limit
""".split()
# The sizes of a new model: those of bert.small (d2l 15.7.1).
DEFAULT_SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
}
# The groups of the help, with their options in the order in which the help shows them.
GROUPS = {
    "Model": "model_name_or_path revision classifier_head dropout hidden_size intermediate_size num_attention_heads "
    "num_hidden_layers max_position_embeddings initializer_range",
    "Data": "dataset_name_or_path dataset_config_name train_file columns labels text_source max_length truncation "
    "max_train_samples min_freq do_lower_case extend_vocab_from static_masks",
    "Optimisation": "num_train_epochs max_steps train_batch_size train_sampling_strategy learning_rate "
    "lr_scheduler_type warmup_steps optim weight_decay max_grad_norm loss_reduction seed",
    "Evaluation": "eval_split max_eval_samples per_device_eval_batch_size load_best_model_at_end",
    "Checkpoints": "output_dir overwrite_output_dir save_steps save_total_limit resume_from_checkpoint",
    "Logging": "logging_steps report_to",
    "Hub": "push_to_hub hub_model_id hub_private_repo",
    "Performance": "mixed_precision num_micro_batches fast_forward attn_implementation pad_to_max_length torch_compile",
}
SHORTEST_PAIR = 5  # tokens: <cls>, one token, <sep>, one token, <sep>


def option(default: Any, help: str, choices: tuple[str, ...] | None = None, metavar: str | None = None) -> Any:
    """Return a dataclass field with the help text of its command-line option."""
    return field(default=default, metadata={"help": help, "choices": choices, "metavar": metavar})


@dataclass
class BaseTrainingArguments:
    """Options that fine-tuning and pretraining share."""

    required: ClassVar[tuple[str, ...]] = ("output_dir",)

    model_name_or_path: str = option("", "Model folder or Hub id to start from.")
    dataset_name_or_path: str = option(choices.HUB_ID, "Training data.")
    output_dir: str = option("", "Folder for the trained model, its metrics and its checkpoints.")
    overwrite_output_dir: bool = option(False, "Write into a folder that is not empty; removes its results.")

    revision: str | None = option(None, "Branch, tag or commit of a model on the Hub. (default: main)")
    dataset_config_name: str | None = option(None, "Configuration of a data set on the Hub.")
    text_source: str = option("raw", "Text of SNLI: raw sentences, or parse tokens as in d2l.", choices.TEXT_SOURCES)
    max_length: int = option(128, "Maximum length of a pair in tokens, including the three special tokens.")
    max_train_samples: int | None = option(None, "Train on the first N pairs only. (default: all)")
    max_eval_samples: int | None = option(None, "Evaluate on the first N pairs only. (default: all)")
    dropout: float | None = option(None, "Dropout of hidden states and attention. (default: as in the model)")

    num_train_epochs: int = option(4, "Number of epochs.")
    max_steps: int = option(-1, "Number of updates; overrides num_train_epochs. -1: train for all epochs.")
    train_batch_size: int = option(256, "Pairs in one update, over all processes and micro-batches.")
    per_device_eval_batch_size: int = option(256, "Pairs in one evaluation batch of a process.")
    num_micro_batches: int = option(1, "Split each update into this number of micro-batches, to save memory.")
    train_sampling_strategy: str = option(
        "group_by_length", "Batches of pairs of similar length, or random as in d2l.", choices.SAMPLING_STRATEGIES
    )

    optim: str = option("adamw_torch_fused", "Optimizer.", choices.OPTIMIZERS)
    learning_rate: float = option(1e-3, "Peak learning rate.")
    lr_scheduler_type: str = option("linear", "Learning rate schedule after the warm-up.", choices.SCHEDULERS)
    warmup_steps: float = option(0.06, "Updates of linear warm-up; a value below 1 is a fraction of all updates.")
    weight_decay: float = option(0.01, "Weight decay. Biases and LayerNorm weights have none.")
    max_grad_norm: float = option(1.0, "Maximum gradient norm; larger gradients are clipped. 0: no clipping.")
    mixed_precision: str = option(
        "auto",
        "Precision of training. auto: the setting of Accelerate if there is one; otherwise bf16 if a matrix "
        "product is at least 1.5 times as fast in bf16 as in fp32. no: fp32. fp16: needs a GPU. Evaluation uses fp32.",
        ("auto", "no", "bf16", "fp16"),
    )
    seed: int = option(42, "Random seed of new weights, data order, masks and dropout.")

    load_best_model_at_end: bool = option(True, "Save the model of the best epoch. false: of the last epoch.")
    logging_steps: int = option(50, "Updates between two lines of metrics.jsonl.")
    save_steps: int = option(0, "Updates between two checkpoints. 0: write one only when a signal stops the run.")
    save_total_limit: int = option(2, "Number of checkpoints to keep.")
    resume_from_checkpoint: str | None = option(
        None, "Checkpoint to resume from. auto: the newest valid one in output_dir, if any.", metavar="DIR|auto"
    )
    report_to: str = option("none", "Experiment tracker to which the metrics are also sent.", choices.TRACKERS)

    def __post_init__(self):
        if not self.output_dir:
            raise BertSnliError("output_dir: is required; give the folder to write")
        for entry in fields(self):
            choices, value = entry.metadata.get("choices"), getattr(self, entry.name)
            if isinstance(value, os.PathLike):
                setattr(self, entry.name, os.fspath(value))
            if choices and value is not None and value not in choices:
                raise BertSnliError(f"{entry.name} {value}: choose from {', '.join(choices)}")
            self._require(entry.name, lambda value: not isinstance(value, float) or isfinite(value), "give a number")
        for name in AT_LEAST_ONE:
            self._require(name, lambda value: value >= 1, "give 1 or more")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "save_steps"):
            self._require(name, lambda value: value >= 0, "give 0 or more")
        self._require("learning_rate", lambda value: value > 0, "give a number above 0")
        self._require("seed", lambda value: 0 <= value < 2**32, "give a number from 0 to below 2**32")
        self._require("dropout", lambda value: 0 <= value < 1, "give a probability from 0 to below 1")
        limit = self.train_batch_size
        self._require("num_micro_batches", lambda value: value <= limit, f"give at most train_batch_size, {limit}")

    def _require(self, name: str, is_valid: Callable[[Any], bool], remedy: str) -> None:
        value = getattr(self, name)
        if value is not None and not is_valid(value):
            raise BertSnliError(f"{name} {value}: {remedy}")

    def save_recipe(self, path: Path) -> None:
        """Write the options as a YAML recipe that repeats the run."""
        options = {name: value for name, value in asdict(self).items() if name not in NOT_IN_RECIPE}
        write_atomically(path, yaml.safe_dump(options, sort_keys=False))

    def settings(self) -> dict[str, Any]:
        """Return the options that affect the weights, even if only by rounding."""
        others = {*NOT_IN_RECIPE, *OUTPUT_OPTIONS}
        return {name: value for name, value in asdict(self).items() if name not in others}


@dataclass
class FinetuneArguments(BaseTrainingArguments):
    """The options of `bert_snli.finetune_model` and `bert-snli finetune`. `bert-snli finetune --help` explains them.

    Raises:
        BertSnliError: a value is not allowed.

    Example:
        >>> arguments = FinetuneArguments(model_name_or_path="quickstart/converted", output_dir="run", max_steps=5)
        >>> arguments.train_batch_size
        256
    """

    required: ClassVar[tuple[str, ...]] = ("model_name_or_path", "output_dir")

    model_name_or_path: str = option("", "Model folder or Hub id to fine-tune; bert-snli convert writes such a folder.")
    dataset_name_or_path: str = option(
        choices.HUB_ID,
        "A Hub id, Stanford's snli_1.0.zip, a folder with a .jsonl, .txt, .tsv, .csv or .parquet file for each split, "
        "one such file (a tenth of it is the validation split), or the word sample for a small generated corpus.",
    )
    train_file: str | None = option(
        None,
        "File that replaces the training split: .jsonl, .parquet, .csv or .tsv with premise, hypothesis, and label or "
        "scores. Scores are teacher predictions (soft labels) in the format of bert-snli predict.",
    )
    columns: dict[str, str] | None = option(
        None, "Names of the columns premise, hypothesis and label in the data.", metavar="ROLE=NAME"
    )
    labels: dict[str, str] | None = option(
        None,
        "The label that each value in the label column means; - means no gold label. A new classifier has the labels "
        "of the training data. (default: the values are the labels)",
        metavar="VALUE=LABEL",
    )
    truncation: str = option(
        "longest",
        "How to truncate pairs longer than max_length. longest: shorten the longer sentence, as in d2l; ratio: shorten "
        "both in proportion; only_first, only_second: shorten one of them; do_not_truncate: stop with an error.",
        choices.TRUNCATIONS,
    )
    classifier_head: str | None = option(
        None,
        "Classifier head. pooler: as in d2l, can be exported to d2l format; mlp: as in d2l before 2020; matching: more "
        "accurate, compares the mean hidden states of both sentences. (default: the head of the model, else matching)",
        choices.CLASSIFIER_HEADS,
    )
    attn_implementation: str | None = option(
        None, "Attention implementation. (default: eager on a CPU, sdpa on a GPU)", ("eager", "sdpa")
    )
    pad_to_max_length: bool = option(False, "Pad every batch to max_length, as in d2l. Slower, same result.")
    loss_reduction: str = option("mean", "Loss of a batch: mean over its pairs, or sum, as in d2l.", ("mean", "sum"))
    fast_forward: bool = option(
        True,
        "Skip computation that does not affect the logits, and train only the embeddings of tokens in the training "
        "data. Same result up to floating-point rounding. On a CPU, dropout draws other random numbers.",
    )
    torch_compile: bool = option(
        False, "Compile the model with torch.compile, which takes one to two minutes. For long runs on GPUs."
    )
    eval_split: str = option("validation", "Split to evaluate after each epoch. d2l uses test.", metavar="NAME")
    push_to_hub: bool = option(False, "Push the model to the Hub at the end of the run.")
    hub_model_id: str | None = option(None, "Repository for push_to_hub.", metavar="USER/NAME")
    hub_private_repo: bool = option(False, "Create the repository as private.")

    def __post_init__(self):
        super().__post_init__()
        if self.push_to_hub and not self.hub_model_id:
            raise BertSnliError("push_to_hub: needs hub_model_id; give user/name")
        if not self.push_to_hub and (self.hub_model_id or self.hub_private_repo):
            name = "hub_model_id" if self.hub_model_id else "hub_private_repo"
            raise BertSnliError(f"{name}: has no effect without push_to_hub; set push_to_hub or remove {name}")


@dataclass
class PretrainArguments(BaseTrainingArguments):
    """The options of `bert_snli.pretrain_model` and `bert-snli pretrain`. `bert-snli pretrain --help` explains them.

    Raises:
        BertSnliError: a value is not allowed.

    Example:
        >>> PretrainArguments(output_dir="run", hidden_size=64, num_attention_heads=2).num_train_epochs
        20
    """

    model_name_or_path: str = option("", "Model folder or Hub id to continue from. (default: a new model)")
    dataset_name_or_path: str = option(
        choices.WIKITEXT,
        "A Hub id, a folder with wiki.*.tokens files, a .txt file, a folder of .txt files, or SNLI as for bert-snli "
        "finetune: its sentences are used without the labels.",
    )
    dataset_config_name: str | None = option(
        None, "Configuration of a data set on the Hub. (default for WikiText: wikitext-2-v1)"
    )

    min_freq: int = option(5, "Tokens that occur fewer times map to <unk>.")
    do_lower_case: bool | None = option(None, "Convert text to lower case, as in d2l. (default: true)")
    extend_vocab_from: str | None = option(
        None,
        "Text that extends the vocabulary of model_name_or_path: its tokens that occur at least min_freq times are "
        "added. Takes the same values as dataset_name_or_path.",
        metavar="PATH",
    )

    hidden_size: int | None = option(None, "Hidden size of a new model. (default: 256)")
    intermediate_size: int | None = option(None, "Size of the feed-forward layers of a new model. (default: 512)")
    num_attention_heads: int | None = option(None, "Number of attention heads of a new model. (default: 4)")
    num_hidden_layers: int | None = option(None, "Number of layers of a new model. (default: 2)")
    max_position_embeddings: int | None = option(None, "Maximum input length of a new model in tokens. (default: 512)")
    initializer_range: float | None = option(None, "Standard deviation of new weights. (default: 0.02)")

    num_train_epochs: int = option(20, "Number of epochs.")
    static_masks: bool = option(False, "Mask the same tokens in each epoch, as in d2l.")

    def __post_init__(self):
        super().__post_init__()
        for name in (*DEFAULT_SIZES, "do_lower_case"):
            if self.model_name_or_path and getattr(self, name) is not None:
                raise BertSnliError(f"{name}: is fixed by {self.model_name_or_path}; remove one of the two")
        for name in (*DEFAULT_SIZES, "min_freq"):
            self._require(name, lambda value: value > 0, "give a number above 0")
        self._require("max_length", lambda value: value >= SHORTEST_PAIR, f"give {SHORTEST_PAIR} or more")
        if self.extend_vocab_from and not self.model_name_or_path:
            raise BertSnliError("extend_vocab_from: needs model_name_or_path; remove it for a new model")
