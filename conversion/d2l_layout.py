"""The names of the book's tensors in PyTorch and in MXNet, and ours: the one place that knows all three.

`{}` stands for the number of the block. The way back is this table read from right to left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from bert_snli.errors import BertSnliError

PYTORCH, MXNET = "pytorch", "mxnet"


@dataclass(frozen=True)
class Rule:
    """One tensor: its name in either framework, and here (empty: left out on purpose, as our model has no use for it).

    `leading_one`: the book's tensor has a leading dimension of 1 that ours has not.
    """

    pytorch: str
    mxnet: str
    hugging_face: str
    leading_one: bool = False

    def d2l(self, framework: str) -> str:
        """The book's name in `framework`."""
        return self.pytorch if framework == PYTORCH else self.mxnet


def _linear(pytorch: str, hugging_face: str, mxnet: str | None = None) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"{pytorch}.{part}", f"{mxnet or pytorch}.{part}", hugging_face and f"{hugging_face}.{part}")
        for part in ("weight", "bias")
    )


def _layer_norm(pytorch: str, hugging_face: str, mxnet: str | None = None) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            f"{pytorch}.{torch_part}",
            f"{mxnet or pytorch}.{mxnet_part}",
            hugging_face and f"{hugging_face}.{torch_part}",
        )
        for torch_part, mxnet_part in (("weight", "gamma"), ("bias", "beta"))
    )


def _same(d2l: str, hugging_face: str, leading_one: bool = False) -> Rule:
    return Rule(d2l, d2l, hugging_face, leading_one)


ENCODER = (
    _same("encoder.token_embedding.weight", "bert.embeddings.word_embeddings.weight"),
    _same("encoder.segment_embedding.weight", "bert.embeddings.token_type_embeddings.weight"),
    _same("encoder.pos_embedding", "bert.embeddings.position_embeddings.weight", leading_one=True),
    *_linear("encoder.blks.{}.attention.W_q", "bert.encoder.layer.{}.attention.query"),
    *_linear("encoder.blks.{}.attention.W_k", "bert.encoder.layer.{}.attention.key"),
    *_linear("encoder.blks.{}.attention.W_v", "bert.encoder.layer.{}.attention.value"),
    *_linear("encoder.blks.{}.attention.W_o", "bert.encoder.layer.{}.attention.output"),
    *_layer_norm("encoder.blks.{}.addnorm1.ln", "bert.encoder.layer.{}.attention_norm"),
    *_linear("encoder.blks.{}.ffn.dense1", "bert.encoder.layer.{}.intermediate"),
    *_linear("encoder.blks.{}.ffn.dense2", "bert.encoder.layer.{}.output"),
    *_layer_norm("encoder.blks.{}.addnorm2.ln", "bert.encoder.layer.{}.output_norm"),
)
POOLER = _linear("hidden.0", "bert.pooler.dense", mxnet="hidden")
PRETRAINING_HEADS = (
    *_linear("mlm.mlp.0", "lm_head.dense"),
    *_layer_norm("mlm.mlp.2", "lm_head.layer_norm", mxnet="mlm.mlp.1"),
    *_linear("mlm.mlp.3", "lm_head.decoder", mxnet="mlm.mlp.2"),
    *_linear("nsp.output", "nsp_head"),
)
PRETRAINING = ENCODER + POOLER + PRETRAINING_HEADS


def _inside_bert(rules: Iterable[Rule], keep: bool) -> tuple[Rule, ...]:
    """`rules` for a model that holds the pretrained one under `bert.`."""
    return tuple(
        replace(
            rule,
            pytorch=f"bert.{rule.pytorch}",
            mxnet=f"bert.{rule.mxnet}",
            hugging_face=rule.hugging_face if keep else "",
        )
        for rule in rules
    )


FORMS = {
    "pretraining": PRETRAINING,  # the book's BERTModel (15.8)
    "classifier": ENCODER + POOLER + _linear("output", "classifier"),  # the book's BERTClassifier (15.7)
    "first-form classifier": (  # the chapter's first: the whole pretrained model, Dense(256, relu), Dense(3)
        *_inside_bert(ENCODER, keep=True),
        *_inside_bert(POOLER + PRETRAINING_HEADS, keep=False),
        *_linear("classifier.0", "classifier.0"),
        *_linear("classifier.2", "classifier.2", mxnet="classifier.1"),
    ),
}


def detect_form(names: Iterable[str]) -> str:
    """Which of `FORMS` has its output layer among `names`; the pretraining model if none has."""
    names = set(names)
    if "output.weight" in names:
        return "classifier"
    return "first-form classifier" if "classifier.0.weight" in names else "pretraining"


def count_blocks(names: Iterable[str]) -> int:
    """Number of Transformer blocks: one more than the highest block number."""
    numbers = [int(match[1]) for name in names if (match := re.match(r"(?:bert\.)?encoder\.blks\.(\d{1,4})\.", name))]
    return max(numbers, default=-1) + 1


def rules_for(form: str, num_blocks: int) -> list[Rule]:
    """The table of `form` with the block numbers filled in, block by block."""
    rules = FORMS[form]
    first = next(index for index, rule in enumerate(rules) if "{}" in rule.pytorch)
    after = next(index for index in range(first, len(rules)) if "{}" not in rules[index].pytorch)
    blocks = [_numbered(rule, number) for number in range(num_blocks) for rule in rules[first:after]]
    return [*rules[:first], *blocks, *rules[after:]]


def _numbered(rule: Rule, number: int) -> Rule:
    return replace(
        rule,
        pytorch=rule.pytorch.format(number),
        mxnet=rule.mxnet.format(number),
        hugging_face=rule.hugging_face and rule.hugging_face.format(number),
    )


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


def refuse_other_architectures(path: Path, names: Iterable[str]) -> None:
    """Check that `names` are those of a d2l BERT, and not of the one of d2l 0.11.

    Raises:
        BertSnliError: they are not.
    """
    names = list(names)
    if count_blocks(names) == 0:
        remedy = "give a checkpoint of the book's BERT, saved by net.save_parameters or torch.save(net.state_dict())"
        raise BertSnliError(f"{path}: no Transformer block (encoder.blks.*); {remedy}")
    if not any(name.endswith(("pos_embedding", "attention.W_q.bias")) for name in names):
        raise BertSnliError(
            f"{path}: the BERT of d2l 0.11, another architecture (no learned positions, no biases in "
            "attention); give a checkpoint of d2l 0.12 or later"
        )
