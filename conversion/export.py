"""Export a model folder as a d2l checkpoint."""

import json
from pathlib import Path

from bert_snli.errors import BertSnliError
from bert_snli.files import PARAMS, VOCABULARY, WEIGHTS, atomic_folder, check_output_dir
from conversion.checkpoint import Checkpoint
from conversion.d2l_layout import MLP_CLASSIFIER, MXNET, PYTORCH
from conversion.model_folder import read_config, read_tokens, read_weights, rename_to_d2l
from conversion.mxnet_params import write_mxnet_checkpoint
from conversion.reference import LAYER_NORM_EPS
from conversion.torch_checkpoint import write_torch_checkpoint

FORMATS = {"d2l-torch": (PYTORCH, write_torch_checkpoint), "d2l-mxnet": (MXNET, write_mxnet_checkpoint)}


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
        The tensors that were written.

    Raises:
        BertSnliError: d2l has no class for the model, the format is unknown, or a folder is invalid.

    Example:
        >>> from conversion import export_checkpoint
        >>> checkpoint = export_checkpoint("quickstart/converted", "exported", format="d2l-torch")
        >>> checkpoint.arrays["encoder.blks.0.attention.W_q.weight"].shape
        (64, 64)
    """
    if format not in FORMATS:
        raise BertSnliError(f"format {format}: choose one of {', '.join(FORMATS)}")
    framework, write = FORMATS[format]
    model, output_dir = Path(model), Path(output_dir)
    check_output_dir(output_dir, overwrite=overwrite_output_dir, model=model)
    config, model_kind = read_config(model)
    if model_kind == MLP_CLASSIFIER:
        what = f"has no pretraining layers, which d2l's {MLP_CLASSIFIER} has"
        raise BertSnliError(f"{model}: {what}; export the model that it was fine-tuned from")
    if config.layer_norm_eps != LAYER_NORM_EPS:
        what = f"layer_norm_eps is {config.layer_norm_eps}, but d2l's is always {LAYER_NORM_EPS}"
        raise BertSnliError(f"{model}: {what}; give a model with {LAYER_NORM_EPS}")
    checkpoint = rename_to_d2l(model / WEIGHTS, read_weights(model), model_kind, config.num_hidden_layers, framework)
    tokens = read_tokens(model)
    num_rows = len(checkpoint.arrays["encoder.token_embedding.weight"])
    if len(tokens) != num_rows:
        raise BertSnliError(f"{model}: {len(tokens)} tokens for {num_rows} embedding rows; resize the embeddings")
    with atomic_folder(output_dir, overwrite=overwrite_output_dir) as folder:
        write(folder / PARAMS, checkpoint.arrays)
        (folder / VOCABULARY).write_text(json.dumps(tokens), encoding="utf-8")
    return checkpoint
