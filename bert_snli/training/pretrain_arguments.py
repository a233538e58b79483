"""The options of pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bert_snli.choices import WIKITEXT
from bert_snli.errors import BertSnliError
from bert_snli.training.arguments import BaseTrainingArguments, option

# What a checkpoint has already, and what it is where there is none: the sizes of bert.small (d2l 15.7.1).
DEFAULT_SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
    "do_lower_case": True,
}

SHORTEST = 5  # a pair: <cls>, a word, <sep>, a word, <sep>


@dataclass
class PretrainArguments(BaseTrainingArguments):
    """Options of `pretrain`.

    Raises:
        BertSnliError: as `BaseTrainingArguments`.
    """

    model_name_or_path: str = option("", "Model folder or hub id to go on from (default: fresh weights).")
    dataset_name_or_path: str = option(
        WIKITEXT,
        "Text: a hub id, a folder of wiki.*.tokens, a .txt file or a folder of them, or any source of SNLI, whose "
        "premises and hypotheses are taken without the labels.",
    )
    dataset_config_name: str | None = option(
        None, "Configuration of a dataset on the hub (default: wikitext-2-v1 of WikiText)."
    )
    output_dir: str = option("", "Folder for the pretrained model, its metrics and its curve.")

    min_freq: int = option(5, "Words that come less often are unknown ones.")
    do_lower_case: bool | None = option(None, "Whether letters are made lower-case, as in the book (default: yes).")
    extend_vocab_from: str | None = option(
        None,
        "Text, as for dataset_name_or_path, whose words of min_freq and more are added to the vocabulary of "
        "model_name_or_path; each starts as a draw from the distribution of the known ones.",
    )

    hidden_size: int | None = option(None, "Width of the model (default: 256).")
    intermediate_size: int | None = option(None, "Width of its feed-forward networks (default: 512).")
    num_attention_heads: int | None = option(None, "Heads of each attention (default: 4).")
    num_hidden_layers: int | None = option(None, "Blocks (default: 2).")
    max_position_embeddings: int | None = option(None, "Longest input that it can ever take (default: 512).")
    initializer_range: float | None = option(None, "Standard deviation of fresh weights (default: 0.02).")

    num_train_epochs: int = option(20, "Times that every pair of sentences is seen.")
    static_masks: bool = option(False, "Predict the same words in each epoch, as the book does.")

    def __post_init__(self):
        super().__post_init__()
        for name in DEFAULT_SIZES:
            if self.model_name_or_path and getattr(self, name) is not None:
                raise BertSnliError(f"--{name}: {self.model_name_or_path} has its own; leave one of the two out")
        for name in (*DEFAULT_SIZES, "min_freq"):
            if name != "do_lower_case":
                self._require(name, lambda value: value > 0, "give a number above 0")
        self._require("max_length", lambda value: value >= SHORTEST, f"give {SHORTEST} or more")
        if self.extend_vocab_from and not self.model_name_or_path:
            raise BertSnliError("--extend_vocab_from: goes with --model_name_or_path; fresh weights get what is there")
