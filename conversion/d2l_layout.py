"""The names of all tensors in d2l's PyTorch and MXNet checkpoints and in models of `bert_snli`.

The table is read from left to right to convert, and from right to left to export.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bert_snli.errors import BertSnliError
from conversion.checkpoint import Checkpoint

PYTORCH, MXNET = "pytorch", "mxnet"
# d2l's BERTModel (15.8); d2l's BERTClassifier (15.7); and the classifier of d2l's first edition, which is the whole
# pretrained model with Dense(256, relu) and Dense(3) on top.
PRETRAINING, CLASSIFIER, MLP_CLASSIFIER = "pretraining", "classifier", "mlp classifier"


@dataclass(frozen=True)
class TensorNames:
    """The names of one tensor in d2l's PyTorch and MXNet checkpoints and in `bert_snli` (empty if it is not used).

    `leading_one`: d2l's tensor has an additional first dimension of size 1.
    """

    pytorch: str
    mxnet: str
    hugging_face: str
    leading_one: bool = False

    def d2l(self, framework: str) -> str:
        """Return the name in d2l's checkpoints of `framework`."""
        return self.pytorch if framework == PYTORCH else self.mxnet

    def with_prefix(self, d2l: str, hugging_face: str = "") -> TensorNames:
        """Add the prefix `d2l` to d2l's names, and the prefix `hugging_face` to the name in `transformers`."""
        return TensorNames(d2l + self.pytorch, d2l + self.mxnet, hugging_face + self.hugging_face, self.leading_one)


def _layer(
    pytorch: str, hugging_face: str, mxnet: str | None = None, mxnet_parts: tuple[str, str] = ("weight", "bias")
) -> list[TensorNames]:
    return [
        TensorNames(f"{pytorch}.{part}", f"{mxnet or pytorch}.{mxnet_part}", f"{hugging_face}.{part}")
        for part, mxnet_part in zip(("weight", "bias"), mxnet_parts, strict=True)
    ]


_layer_norm = partial(_layer, mxnet_parts=("gamma", "beta"))
EMBEDDINGS = [
    TensorNames(f"encoder.{d2l}", f"encoder.{d2l}", f"bert.embeddings.{ours}.weight", leading_one)
    for d2l, ours, leading_one in (
        ("token_embedding.weight", "word_embeddings", False),
        ("segment_embedding.weight", "token_type_embeddings", False),
        ("pos_embedding", "position_embeddings", True),
    )
]
BLOCK = [
    *_layer("attention.W_q", "attention.query"),
    *_layer("attention.W_k", "attention.key"),
    *_layer("attention.W_v", "attention.value"),
    *_layer("attention.W_o", "attention.output"),
    *_layer_norm("addnorm1.ln", "attention_norm"),
    *_layer("ffn.dense1", "intermediate"),
    *_layer("ffn.dense2", "output"),
    *_layer_norm("addnorm2.ln", "output_norm"),
]
POOLER = _layer("hidden.0", "bert.pooler.dense", mxnet="hidden")
PRETRAINING_LAYERS = [
    *_layer("mlm.mlp.0", "lm_head.dense"),
    *_layer_norm("mlm.mlp.2", "lm_head.layer_norm", mxnet="mlm.mlp.1"),
    *_layer("mlm.mlp.3", "lm_head.decoder", mxnet="mlm.mlp.2"),
    *_layer("nsp.output", "nsp_head"),
]
OUTPUT_LAYER = _layer("output", "classifier")
MLP_LAYERS = [*_layer("classifier.0", "classifier.0"), *_layer("classifier.2", "classifier.2", mxnet="classifier.1")]


def name_map(model_kind: str, num_blocks: int) -> list[TensorNames]:
    """Return the names of all tensors in a model of `model_kind` with `num_blocks` blocks."""
    encoder = EMBEDDINGS + [
        names.with_prefix(f"encoder.blks.{number}.", f"bert.encoder.layer.{number}.")
        for number in range(num_blocks)
        for names in BLOCK
    ]
    if model_kind == PRETRAINING:
        return encoder + POOLER + PRETRAINING_LAYERS
    if model_kind == CLASSIFIER:
        return encoder + POOLER + OUTPUT_LAYER
    unused = [TensorNames(names.pytorch, names.mxnet, "") for names in POOLER + PRETRAINING_LAYERS]
    return [names.with_prefix("bert.") for names in encoder + unused] + MLP_LAYERS


def count_blocks(names: Iterable[str]) -> int:
    """Return the number of Transformer blocks: the highest block number plus one."""
    numbers = [int(match[1]) for name in names if (match := re.match(r"(?:bert\.)?encoder\.blks\.(\d{1,4})\.", name))]
    return max(numbers, default=-1) + 1


def identify_model(checkpoint: Checkpoint) -> tuple[str, list[TensorNames]]:
    """Return the kind of model in a d2l checkpoint, and the names of its tensors."""
    path, names, num_blocks = checkpoint.path, checkpoint.arrays.keys(), count_blocks(checkpoint.arrays)
    if num_blocks == 0:
        raise BertSnliError(f"{path}: no Transformer block (encoder.blks.*); give a checkpoint of d2l's BERT")
    if not any(name.endswith(("pos_embedding", "attention.W_q.bias")) for name in names):
        raise BertSnliError(f"{path}: has no learned positions, as in d2l 0.11; give a checkpoint of d2l 0.12 or later")
    model_kind = MLP_CLASSIFIER if "classifier.0.weight" in names else PRETRAINING
    if "output.weight" in names:
        model_kind = CLASSIFIER
    expected = name_map(model_kind, num_blocks)
    check_names(names, (entry.d2l(checkpoint.framework) for entry in expected), path)
    return model_kind, expected


def check_names(found: Iterable[str], expected: Iterable[str], path: Path) -> None:
    """Check that the file `path` holds exactly the `expected` tensors."""
    found, expected = set(found), set(expected)
    for problem, names in (("missing", expected - found), ("unexpected", found - expected)):
        if names:
            raise BertSnliError(f"{path}: {problem} tensors: {summarize_names(names)}; give a checkpoint of d2l's BERT")


def summarize_names(names: Iterable[str]) -> str:
    """Return the first three names in alphabetical order, and the number of other names."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
