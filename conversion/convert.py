"""Convert a d2l checkpoint to a model folder of `transformers`, and write its certificate."""

import importlib.metadata
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from bert_snli.errors import BertSnliError
from bert_snli.files import atomic_folder, check_output_dir, sha256_of_file
from bert_snli.modeling import D2LBertConfig
from bert_snli.modeling.labels import D2L_LABELS, ID2LABEL, LABEL2ID
from bert_snli.tokenization import build_tokenizer, read_vocabulary
from conversion import d2l_layout
from conversion.certificate import Certificate, check_tensors, describe_tensor, sha256_of_files
from conversion.checkpoint import Checkpoint, open_checkpoint_files, read_checkpoint
from conversion.d2l_layout import CLASSIFIER, MLP_CLASSIFIER, MXNET, PYTORCH, TensorNames
from conversion.download import CHECKPOINT_NAMES, download_checkpoint
from conversion.model_folder import MODEL_CLASSES, read_tokens
from conversion.proof import prove
from conversion.reference import ReferenceModel

logger = logging.getLogger(__name__)

SOFTWARE = ("bert-snli", "transformers", "tokenizers", "torch", "numpy")
SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
MAX_LABELS = 1000
# The shapes of the tensors do not show the number of attention heads, but it is known for d2l's models.
NUM_ATTENTION_HEADS = {  # (hidden_size, intermediate_size, num_hidden_layers) → number
    (256, 512, 2): 4,  # bert.small
    (768, 3072, 12): 12,  # bert.base
    (128, 128, 2): 2,  # d2l's first edition
    (128, 256, 2): 2,  # section 15.10
}


def convert_checkpoint(
    source: str | Path,
    output_dir: str | Path,
    *,
    vocab_file: str | Path | None = None,
    framework: str | None = None,
    num_attention_heads: int | None = None,
    do_lower_case: bool = True,
    overwrite_output_dir: bool = False,
) -> Certificate:
    """Convert a d2l checkpoint to a model folder of `transformers`, and prove that both give the same results.

    All weights get the widest type in the checkpoint, which changes no value.

    Args:
        source: a folder, a zip file, a params file, or `bert.small` or `bert.base`, which is downloaded once.
        output_dir: the model folder to write.
        vocab_file: the vocabulary, if it is not next to the params file.
        framework: `pytorch` (default) or `mxnet`, the format to download.
        num_attention_heads: required if the model does not have the sizes of one of d2l's models.
        do_lower_case: whether the tokenizer lower-cases text.
        overwrite_output_dir: write into a folder that already holds files.

    Returns:
        The certificate, which is also in `output_dir`.

    Raises:
        BertSnliError: the source or the output folder is invalid. Nothing is written then.

    Example:
        >>> from conversion import convert_checkpoint
        >>> certificate = convert_checkpoint("quickstart/d2l_checkpoint", "converted_again", num_attention_heads=4)
        >>> len(certificate.tensors)
        45
    """
    check_output_dir(Path(output_dir), overwrite=overwrite_output_dir)
    if source in CHECKPOINT_NAMES and not Path(source).exists():
        source = download_checkpoint(str(source), framework or PYTORCH)
    elif framework:
        names = " and ".join(CHECKPOINT_NAMES)
        raise BertSnliError(f"framework {framework}: only for {names}; leave it out for a file")
    with open_checkpoint_files(Path(source), Path(vocab_file) if vocab_file else None) as (params, vocabulary):
        tokens, checkpoint = read_vocabulary(vocabulary), read_checkpoint(params)
        model_kind, tensor_names = d2l_layout.identify_model(checkpoint)
        config = _infer_config(checkpoint, model_kind, num_attention_heads)
        if len(tokens) != config.vocab_size:
            what = f"{len(tokens)} tokens, but {params} has {config.vocab_size} embedding rows"
            raise BertSnliError(f"{vocabulary}: {what}; give the vocab.json that was saved with these weights")
        max_length = config.max_position_embeddings
        tokenizer = build_tokenizer(tokens, model_max_length=max_length, do_lower_case=do_lower_case)
        config.pad_token_id = tokenizer.pad_token_id
        with torch.device("meta"):
            model = MODEL_CLASSES[model_kind](config)
        weights = _rename_weights(checkpoint, tensor_names, model)
        records = _record_tensors(checkpoint, tensor_names, weights)
        model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, assign=True)
        with atomic_folder(Path(output_dir), overwrite=overwrite_output_dir) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            if read_tokens(folder) != tokens:
                raise BertSnliError(f"{vocabulary}: the tokenizer made from it has other ids; please report this")
            check_tensors(folder, records)
            reference = ReferenceModel(checkpoint, config.num_attention_heads)
            certificate = Certificate(
                source=_record_source(checkpoint.framework, model_kind, params, vocabulary),
                software={name: importlib.metadata.version(name) for name in SOFTWARE},
                geometry={name: getattr(config, name) for name in SIZES},
                tensors=records,
                files=sha256_of_files(folder),
                proof=prove(reference, folder, MODEL_CLASSES[model_kind]),
            )
            certificate.write(folder)
    return certificate


def _infer_config(checkpoint: Checkpoint, model_kind: str, num_attention_heads: int | None) -> D2LBertConfig:
    encoder = "bert.encoder" if model_kind == MLP_CLASSIFIER else "encoder"
    sizes = {"num_hidden_layers": d2l_layout.count_blocks(checkpoint.arrays)}
    sizes["vocab_size"], sizes["hidden_size"] = _get_shape(checkpoint, f"{encoder}.token_embedding.weight")
    sizes["intermediate_size"], _ = _get_shape(checkpoint, f"{encoder}.blks.0.ffn.dense1.weight")
    _, sizes["max_position_embeddings"], _ = _get_shape(checkpoint, f"{encoder}.pos_embedding", dimensions=3)
    sizes["type_vocab_size"], _ = _get_shape(checkpoint, f"{encoder}.segment_embedding.weight")
    d2l_num_heads = NUM_ATTENTION_HEADS.get(
        (sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"])
    )
    if num_attention_heads is None:
        num_attention_heads = d2l_num_heads
    if num_attention_heads is None:
        what = "the number of attention heads is unknown, because no model of d2l has these sizes"
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise BertSnliError(f"{checkpoint.path}: {what} ({shown}); set num_attention_heads")
    try:
        config = D2LBertConfig(num_attention_heads=num_attention_heads, **sizes)
    except ValueError as error:
        raise BertSnliError(f"{checkpoint.path}: num_attention_heads {num_attention_heads}: {error}") from error
    if d2l_num_heads not in (None, num_attention_heads):
        logger.warning("num_attention_heads %d: d2l's model of these sizes has %d", num_attention_heads, d2l_num_heads)
    _set_classifier(config, checkpoint, model_kind)
    return config


def _set_classifier(config: D2LBertConfig, checkpoint: Checkpoint, model_kind: str) -> None:
    num_labels = len(D2L_LABELS)  # for fine-tuning a pretrained model
    if model_kind == MLP_CLASSIFIER:
        config.classifier_head = "mlp"
        config.classifier_hidden_size, _ = _get_shape(checkpoint, "classifier.0.weight")
        output_layer = "classifier.1" if checkpoint.framework == MXNET else "classifier.2"
        num_labels, _ = _get_shape(checkpoint, f"{output_layer}.weight")
    elif model_kind == CLASSIFIER:
        num_labels, _ = _get_shape(checkpoint, "output.weight")
    if num_labels > MAX_LABELS:
        problem = f"its output layer has {num_labels:,} rows"
        raise BertSnliError(f"{checkpoint.path}: {problem}; give a classifier with at most {MAX_LABELS:,} labels")
    config.num_labels = num_labels
    if num_labels == len(D2L_LABELS):
        config.id2label, config.label2id = dict(ID2LABEL), dict(LABEL2ID)


def _get_shape(checkpoint: Checkpoint, name: str, dimensions: int = 2) -> tuple[int, ...]:
    shape = checkpoint.arrays[name].shape
    if len(shape) != dimensions or 0 in shape:
        problem = f"{name} has shape {shape}, not {dimensions} dimensions above 0"
        raise BertSnliError(f"{checkpoint.path}: {problem}; give a checkpoint of d2l's BERT")
    return shape


def _rename_weights(
    checkpoint: Checkpoint, tensor_names: list[TensorNames], model: PreTrainedModel
) -> dict[str, np.ndarray]:
    """Return the weights under the names in `model`. All get the widest type in the checkpoint."""
    path, parameters = checkpoint.path, model.state_dict()
    weights = {}
    for names in [names for names in tensor_names if names.hugging_face]:
        name, shape = names.d2l(checkpoint.framework), tuple(parameters[names.hugging_face].shape)
        array, saved_name = checkpoint.arrays[name], checkpoint.saved_names[name]
        if array.shape != ((1, *shape) if names.leading_one else shape):
            what = f"{saved_name} has shape {array.shape}, but the other tensors need {shape}"
            raise BertSnliError(f"{path}: {what}; get the file again")
        if array.dtype.name not in ("float16", "float32", "float64"):
            raise BertSnliError(f"{path}: {saved_name} is of type {array.dtype}; save float16, float32 or float64")
        if not np.isfinite(array).all():
            raise BertSnliError(f"{path}: NaN or infinite values in {saved_name}; get the file again")
        weights[names.hugging_face] = array.reshape(shape)
    dtype = np.result_type(*(array.dtype for array in weights.values()))
    return {name: np.array(array, dtype, order="C") for name, array in weights.items()}


def _record_tensors(
    checkpoint: Checkpoint, tensor_names: list[TensorNames], weights: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    records = []
    for names in tensor_names:
        name = names.d2l(checkpoint.framework)
        source = describe_tensor(checkpoint.saved_names[name], checkpoint.arrays[name])
        target = describe_tensor(names.hugging_face, weights[names.hugging_face]) if names.hugging_face else None
        records.append({"source": source, "target": target})
    return records


def _record_source(framework: str, model_kind: str, params: Path, vocabulary: Path) -> dict[str, str]:
    source = {"framework": framework, "model_kind": model_kind}
    for name, path in (("params", params), ("vocabulary", vocabulary)):
        source |= {name: path.name, f"{name}_sha256": sha256_of_file(path)}
    return source
