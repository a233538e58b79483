"""The names of the book's PyTorch tensors and of ours, side by side: the one place that knows both.

`{}` stands for the number of the block. The way back is this table read from right to left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from bert_snli.errors import BertSnliError


@dataclass(frozen=True)
class Rule:
    """One tensor: its name in the book, its name here, and whether the book's has a leading dimension of 1."""

    d2l: str
    hugging_face: str
    leading_one: bool = False


def _weight_and_bias(d2l: str, hugging_face: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{d2l}.weight", f"{hugging_face}.weight"),
        Rule(f"{d2l}.bias", f"{hugging_face}.bias"),
    )


ENCODER = (
    Rule("encoder.token_embedding.weight", "bert.embeddings.word_embeddings.weight"),
    Rule("encoder.segment_embedding.weight", "bert.embeddings.token_type_embeddings.weight"),
    Rule("encoder.pos_embedding", "bert.embeddings.position_embeddings.weight", leading_one=True),
    *_weight_and_bias("encoder.blks.{}.attention.W_q", "bert.encoder.layer.{}.attention.query"),
    *_weight_and_bias("encoder.blks.{}.attention.W_k", "bert.encoder.layer.{}.attention.key"),
    *_weight_and_bias("encoder.blks.{}.attention.W_v", "bert.encoder.layer.{}.attention.value"),
    *_weight_and_bias("encoder.blks.{}.attention.W_o", "bert.encoder.layer.{}.attention.output"),
    *_weight_and_bias("encoder.blks.{}.addnorm1.ln", "bert.encoder.layer.{}.attention_norm"),
    *_weight_and_bias("encoder.blks.{}.ffn.dense1", "bert.encoder.layer.{}.intermediate"),
    *_weight_and_bias("encoder.blks.{}.ffn.dense2", "bert.encoder.layer.{}.output"),
    *_weight_and_bias("encoder.blks.{}.addnorm2.ln", "bert.encoder.layer.{}.output_norm"),
    *_weight_and_bias("hidden.0", "bert.pooler.dense"),
)
PRETRAINING_HEADS = (
    *_weight_and_bias("mlm.mlp.0", "lm_head.dense"),
    *_weight_and_bias("mlm.mlp.2", "lm_head.layer_norm"),
    *_weight_and_bias("mlm.mlp.3", "lm_head.decoder"),
    *_weight_and_bias("nsp.output", "nsp_head"),
)
CLASSIFIER_HEAD = _weight_and_bias("output", "classifier")

FORMS = {
    "pretraining": ENCODER + PRETRAINING_HEADS,  # the book's BERTModel (15.8)
    "classifier": ENCODER + CLASSIFIER_HEAD,  # the book's BERTClassifier (15.7)
}


def detect_form(names: Iterable[str]) -> str:
    """`"classifier"` if the output layer of section 15.7 is there, else `"pretraining"`."""
    return "classifier" if "output.weight" in set(names) else "pretraining"


def count_blocks(names: Iterable[str]) -> int:
    """Number of Transformer blocks: one more than the highest block number."""
    numbers = [int(match[1]) for name in names if (match := re.match(r"encoder\.blks\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def rules_for(form: str, num_blocks: int) -> list[Rule]:
    """The table of `form` with the block numbers filled in."""
    rules: list[Rule] = []
    for rule in FORMS[form]:
        numbers = range(num_blocks) if "{}" in rule.d2l else [None]
        rules += [Rule(rule.d2l.format(n), rule.hugging_face.format(n), rule.leading_one) for n in numbers]
    return rules


def check_names(found: Iterable[str], expected: Iterable[str], where: str) -> None:
    """Every name on both sides accounted for.

    Raises:
        BertSnliError: a tensor is missing or unexpected; `where` names the file.
    """
    found, expected = set(found), set(expected)
    for word, names in (("missing", expected - found), ("unexpected", found - expected)):
        if names:
            some = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise BertSnliError(
                f"{where}: {word} tensor{'s' * (len(names) > 1)}: {some}; "
                "give a checkpoint saved whole by the book's BERTModel or BERTClassifier"
            )


def to_hugging_face(arrays: Mapping[str, torch.Tensor], rules: Iterable[Rule]) -> dict[str, torch.Tensor]:
    """The book's tensors under our names; no number is touched."""
    return {r.hugging_face: arrays[r.d2l].squeeze(0) if r.leading_one else arrays[r.d2l] for r in rules}


def to_d2l(state_dict: Mapping[str, torch.Tensor], rules: Iterable[Rule]) -> dict[str, torch.Tensor]:
    """Our tensors under the book's names: `to_hugging_face` backwards."""
    return {
        r.d2l: state_dict[r.hugging_face].unsqueeze(0) if r.leading_one else state_dict[r.hugging_face] for r in rules
    }
