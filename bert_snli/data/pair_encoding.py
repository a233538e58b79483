"""Pairs encoded and truncated as the book does: `<cls> premise <sep> hypothesis <sep>` with segments (d2l 15.7.2).

The Rust tokenizer's own pair truncation is not used: on an odd budget it gives the extra token to the other side.
"""

from __future__ import annotations

from collections.abc import Mapping

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from bert_snli.errors import BertSnliError

NUM_SPECIAL_TOKENS = 3
FEATURES = Features(
    {
        "input_ids": List(Value("int32")),
        "token_type_ids": List(Value("int8")),
        "length": Value("int32"),
    }
)


def truncated_lengths(premise: int, hypothesis: int, budget: int) -> tuple[int, int]:
    """How many tokens of each side stay when both must fit `budget`.

    The book pops a token from the longer side, from the hypothesis on a tie, until the pair fits. So a side that
    needs no more than its half stays whole, and otherwise the premise gets the larger half.
    """
    if premise + hypothesis <= budget:
        return premise, hypothesis
    hypothesis_half = budget // 2
    premise_half = budget - hypothesis_half
    if hypothesis <= hypothesis_half:
        return budget - hypothesis, hypothesis
    if premise <= premise_half:
        return premise, budget - premise
    return premise_half, hypothesis_half


def default_max_length(tokenizer: PreTrainedTokenizerBase) -> int:
    """The book's 128 tokens, or all that a smaller model has positions for."""
    return min(128, tokenizer.model_max_length)


class PairEncoder:
    """A function for `Dataset.map(batched=True)`: premise, hypothesis → `input_ids`, `token_type_ids`, `length`.

    Raises:
        BertSnliError: `max_length` does not fit the model, or leaves no room for a token of each side.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int):
        if not NUM_SPECIAL_TOKENS + 2 <= max_length <= tokenizer.model_max_length:
            raise BertSnliError(
                f"--max_length {max_length}: must be from {NUM_SPECIAL_TOKENS + 2} to {tokenizer.model_max_length}, "
                "the model's number of positions"
            )
        self.tokenizer = tokenizer
        self.budget = max_length - NUM_SPECIAL_TOKENS

    def __call__(self, batch: Mapping[str, list[str]]) -> dict[str, list]:
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        encoded: dict[str, list] = {name: [] for name in FEATURES}
        for premise, hypothesis in zip(self._ids(batch["premise"]), self._ids(batch["hypothesis"]), strict=True):
            p, h = truncated_lengths(len(premise), len(hypothesis), self.budget)
            encoded["input_ids"].append([cls, *premise[:p], sep, *hypothesis[:h], sep])
            encoded["token_type_ids"].append([0] * (p + 2) + [1] * (h + 1))
            encoded["length"].append(p + h + NUM_SPECIAL_TOKENS)
        return encoded

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(
            texts, add_special_tokens=False, return_token_type_ids=False, return_attention_mask=False, verbose=False
        )["input_ids"]


def encode_pairs(pairs: Dataset, encoder: PairEncoder, *, num_proc: int | None = None) -> Dataset:
    """Map `encoder` over `pairs`; a `label` column is kept as `labels`. A second run is read from the cache."""
    features, columns = FEATURES, ["premise", "hypothesis"]
    if "label" in pairs.column_names:
        pairs = pairs.rename_column("label", "labels")
        features = Features({**FEATURES, "labels": pairs.features["labels"]})
    return pairs.map(
        encoder,
        batched=True,
        num_proc=num_proc,
        remove_columns=columns,
        features=features,
        desc="Encoding pairs",
    )
