"""The sizes of a checkpoint's model, read from the shapes of its tensors."""

from __future__ import annotations

from bert_snli.errors import BertSnliError
from bert_snli.modeling import D2LBertConfig
from bert_snli.modeling.labels import D2L_LABELS, ID2LABEL, LABEL2ID
from conversion.checkpoint import Checkpoint
from conversion.d2l_layout import count_blocks

MOST_LABELS = 1000
# The one size that no tensor shows. Those of the book's models → their attention heads.
HEADS_BY = ("hidden_size", "intermediate_size", "num_hidden_layers")
HEADS = {
    (256, 512, 2): 4,  # bert.small
    (768, 3072, 12): 12,  # bert.base
    (128, 128, 2): 2,  # the chapter's first form
    (128, 256, 2): 2,  # section 15.10
}


def read_geometry(checkpoint: Checkpoint, form: str, num_attention_heads: int | None = None) -> D2LBertConfig:
    """The configuration that the shapes tell; the names of `checkpoint` are those of `form`.

    Raises:
        BertSnliError: a tensor that shows a size has the wrong number of dimensions; no preset knows the number of
            heads and none is given, or it does not divide the hidden size.
    """
    where = checkpoint.path
    num_blocks = count_blocks(checkpoint.tensors)
    inner = "bert." if form == "first-form classifier" else ""

    def shape(name: str, dimensions: int = 2) -> tuple[int, ...]:
        found = checkpoint.tensors[name].shape
        if len(found) != dimensions or 0 in found:
            raise BertSnliError(
                f"{where}: {name} has shape {found}; the book's has {dimensions} dimensions, none empty"
            )
        return found

    def num_labels(name: str) -> int:
        if (number := shape(name)[0]) > MOST_LABELS:
            raise BertSnliError(f"{where}: {name} has {number:,} rows; a classifier has one for each label")
        return number

    vocab_size, hidden_size = shape(f"{inner}encoder.token_embedding.weight")
    intermediate_size = shape(f"{inner}encoder.blks.0.ffn.dense1.weight")[0]
    heads = num_attention_heads
    if heads is None:
        heads = HEADS.get((hidden_size, intermediate_size, num_blocks))
    if heads is None:
        raise BertSnliError(
            f"{where}: hidden size {hidden_size}, feed-forward {intermediate_size}, {num_blocks} blocks is none of the "
            "book's models and no tensor shows the number of heads; add --num_attention_heads"
        )
    try:
        config = D2LBertConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_blocks,
            num_attention_heads=heads,
            intermediate_size=intermediate_size,
            max_position_embeddings=shape(f"{inner}encoder.pos_embedding", 3)[1],
            type_vocab_size=shape(f"{inner}encoder.segment_embedding.weight")[0],
        )
    except ValueError as error:
        raise BertSnliError(f"{where}: --num_attention_heads {heads}: {error}") from error
    if form == "first-form classifier":
        config.classifier_head = "mlp"
        config.classifier_hidden_size = shape("classifier.0.weight")[0]
        last = "classifier.2.weight" if "classifier.2.weight" in checkpoint.tensors else "classifier.1.weight"
        _name_labels(config, num_labels(last))
    elif form == "classifier":
        _name_labels(config, num_labels("output.weight"))
    else:  # a classifier that starts from these weights has the labels of SNLI
        _name_labels(config, len(D2L_LABELS))
    return config


def _name_labels(config: D2LBertConfig, num_labels: int) -> None:
    if num_labels == len(D2L_LABELS):
        config.id2label, config.label2id = dict(ID2LABEL), dict(LABEL2ID)
    else:
        config.num_labels = num_labels
