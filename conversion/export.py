"""A model folder of `transformers` → `pretrained.params` and `vocab.json` that the book's own code loads."""

from __future__ import annotations

import json
from pathlib import Path

from bert_snli.errors import BertSnliError
from bert_snli.files import PARAMS, VOCABULARY, atomic_folder, check_export_dir
from conversion.checkpoint import Checkpoint
from conversion.d2l_layout import MXNET, PYTORCH
from conversion.model_folder import read_config, read_vocabulary_of, read_weights, rename_to_d2l, rules_of
from conversion.mxnet_params import write_mxnet_checkpoint
from conversion.reference import LAYER_NORM_EPS
from conversion.torch_checkpoint import write_torch_checkpoint

FORMATS = {"d2l-torch": PYTORCH, "d2l-mxnet": MXNET}
WRITERS = {PYTORCH: write_torch_checkpoint, MXNET: write_mxnet_checkpoint}


def export_checkpoint(
    model: str | Path, output_dir: str | Path, *, format: str, overwrite_output_dir: bool = False
) -> Checkpoint:
    """Write a model folder as d2l's files `pretrained.params` and `vocab.json`.

    Args:
        model: the model folder.
        output_dir: the folder to write.
        format: `d2l-torch` or `d2l-mxnet`.
        overwrite_output_dir: write into a folder that already holds files.

    Returns:
        The names, shapes and types of the tensors that were written.

    Raises:
        BertSnliError: not a model that d2l has a class for, or something about the folders.
    """
    model, output_dir = Path(model), Path(output_dir)
    check_export_dir(output_dir, model, overwrite=overwrite_output_dir)
    form, config = read_config(model)
    weights = read_weights(model)
    rules = rules_of(form, config, weights)
    if config.layer_norm_eps != LAYER_NORM_EPS:
        raise BertSnliError(f"{model}: layer_norm_eps is {config.layer_norm_eps}; the book's code has {LAYER_NORM_EPS}")
    if not all(rule.hugging_face for rule in rules):
        raise BertSnliError(
            f"{model}: a {form}; the book's file of it holds the pretraining heads too, which this model has not: "
            "export the model that it was fine-tuned from"
        )
    framework = FORMATS[format]
    book = rename_to_d2l(weights, rules, framework)
    vocabulary = read_vocabulary_of(model)
    rows = book.tensors["encoder.token_embedding.weight"].shape[0]
    if len(vocabulary) != rows:
        raise BertSnliError(
            f"{model}: {len(vocabulary)} tokens for {rows} embedding rows; resize the model to its tokenizer first"
        )
    with atomic_folder(output_dir, overwrite=overwrite_output_dir) as folder:
        WRITERS[framework](folder / PARAMS, book.read(book.tensors))
        (folder / VOCABULARY).write_text(json.dumps(vocabulary), encoding="utf-8")
    return book
