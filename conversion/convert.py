"""A checkpoint of the book's → a model folder of `transformers`, every tensor accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from bert_snli.errors import BertSnliError
from bert_snli.folders import check_output_dir, finished_folder
from bert_snli.labels import BOOK_LABELS, ID2LABEL, LABEL2ID
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining, D2LBertForSequenceClassification
from bert_snli.tokenization import build_tokenizer, read_vocabulary
from conversion.archive import open_source
from conversion.d2l_layout import check_names, count_blocks, detect_form, rules_for, to_d2l, to_hugging_face
from conversion.torch_checkpoint import read_torch_checkpoint

# The one size that no tensor shows. (hidden, feed-forward, blocks) of the book's models → attention heads.
HEADS = {
    (256, 512, 2): 4,  # bert.small
    (768, 3072, 12): 12,  # bert.base
    (128, 128, 2): 2,  # the chapter's first form
    (128, 256, 2): 2,  # section 15.10
}
MODEL_CLASSES = {"pretraining": D2LBertForPreTraining, "classifier": D2LBertForSequenceClassification}


@dataclass(frozen=True)
class Conversion:
    """What was converted, for the closing line."""

    form: str
    num_tensors: int
    num_parameters: int
    config: D2LBertConfig


def convert(
    source: Path,
    output_dir: Path,
    *,
    num_attention_heads: int | None = None,
    do_lower_case: bool = True,
    overwrite_output_dir: bool = False,
) -> Conversion:
    """Convert `source` (folder, zip or params file) and write a model folder to `output_dir`.

    Raises:
        BertSnliError: anything wrong with the source or the output folder; nothing is written then.
    """
    check_output_dir(output_dir, overwrite=overwrite_output_dir)
    with open_source(source) as files:
        vocabulary = read_vocabulary(files.vocabulary)
        arrays = read_torch_checkpoint(files.params)
        form = detect_form(arrays)
        rules = rules_for(form, count_blocks(arrays))
        check_names(arrays, [rule.d2l for rule in rules], str(files.params))
        config = read_geometry(arrays, str(files.params), num_attention_heads)
        if len(vocabulary) != config.vocab_size:
            raise BertSnliError(
                f"{files.vocabulary}: {len(vocabulary)} tokens, but {files.params} has {config.vocab_size} embedding "
                "rows; take the vocab.json that was saved with these weights"
            )
        tokenizer = build_tokenizer(
            vocabulary, model_max_length=config.max_position_embeddings, do_lower_case=do_lower_case
        )
        config.pad_token_id = tokenizer.pad_token_id
        if form == "classifier":
            _name_labels(config, num_labels=arrays["output.weight"].shape[0])
        model = _fill(form, config, arrays, str(files.params))
    with finished_folder(output_dir, overwrite=overwrite_output_dir) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return Conversion(form, len(arrays), model.num_parameters(), config)


def read_geometry(
    arrays: Mapping[str, torch.Tensor], where: str, num_attention_heads: int | None = None
) -> D2LBertConfig:
    """The configuration that the shapes tell; `where` names the file in errors.

    Raises:
        BertSnliError: no preset knows the number of heads and none is given, or it does not divide the hidden size.
    """
    num_blocks = count_blocks(arrays)
    if num_blocks == 0:
        raise BertSnliError(f"{where}: no Transformer block (encoder.blks.*); give a checkpoint of the book's BERT")
    for name, dimensions in (
        ("encoder.token_embedding.weight", 2),
        ("encoder.segment_embedding.weight", 2),
        ("encoder.pos_embedding", 3),
        ("encoder.blks.0.ffn.dense1.weight", 2),
    ):
        if name in arrays and arrays[name].dim() != dimensions:
            raise BertSnliError(f"{where}: {name} has {arrays[name].dim()} dimensions, the book's has {dimensions}")
    vocab_size, hidden_size = arrays["encoder.token_embedding.weight"].shape
    intermediate_size = arrays["encoder.blks.0.ffn.dense1.weight"].shape[0]
    heads = num_attention_heads
    if heads is None:
        heads = HEADS.get((hidden_size, intermediate_size, num_blocks))
    if heads is None:
        raise BertSnliError(
            f"{where}: hidden size {hidden_size}, feed-forward {intermediate_size}, {num_blocks} blocks is none of the "
            "book's models and no tensor shows the number of heads; add --num_attention_heads"
        )
    try:
        return D2LBertConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_blocks,
            num_attention_heads=heads,
            intermediate_size=intermediate_size,
            max_position_embeddings=arrays["encoder.pos_embedding"].shape[1],
            type_vocab_size=arrays["encoder.segment_embedding.weight"].shape[0],
        )
    except ValueError as error:
        raise BertSnliError(f"{where}: --num_attention_heads {heads}: {error}") from error


def book_state_dict(model: D2LBertForPreTraining) -> dict[str, torch.Tensor]:
    """The weights of `model` under the names that the book's `BERTModel` has."""
    return to_d2l(model.state_dict(), rules_for("pretraining", model.config.num_hidden_layers))


def _name_labels(config: D2LBertConfig, num_labels: int) -> None:
    if num_labels == len(BOOK_LABELS):
        config.id2label, config.label2id = dict(ID2LABEL), dict(LABEL2ID)
    else:
        config.num_labels = num_labels


def _fill(form: str, config: D2LBertConfig, arrays: Mapping[str, torch.Tensor], where: str):
    """A model whose parameters *are* the checkpoint's tensors, in fp32."""
    with torch.device("meta"):
        model = MODEL_CLASSES[form](config)
    rules = rules_for(form, config.num_hidden_layers)
    state_dict = to_hugging_face(arrays, rules)
    check_names([rule.hugging_face for rule in rules], model.state_dict(), where)
    for rule in rules:
        found, expected = state_dict[rule.hugging_face].shape, model.state_dict()[rule.hugging_face].shape
        if found != expected:
            raise BertSnliError(
                f"{where}: {rule.d2l} has shape {tuple(found)}, but the other tensors ask for {tuple(expected)}"
            )
    model.load_state_dict({name: value.float() for name, value in state_dict.items()}, assign=True)
    return model
