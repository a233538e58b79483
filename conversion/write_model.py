"""Write a converted checkpoint as a model folder with its certificate."""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bert_snli.errors import BertSnliError
from bert_snli.files import WEIGHTS, atomic_folder, sha256_of_file
from bert_snli.modeling import D2LBertConfig
from bert_snli.modeling.labels import D2L_LABELS, ID2LABEL, LABEL2ID
from bert_snli.tokenization import build_tokenizer
from conversion.certificate import (
    SIZES,
    Certificate,
    SourceRecord,
    TensorRecord,
    check_tensors,
    describe_tensor,
    sha256_of_files,
)
from conversion.checkpoint import Checkpoint, CheckpointFiles
from conversion.d2l_layout import (
    CLASSIFIER,
    MLP_CLASSIFIER,
    MXNET,
    TensorNames,
    check_names,
    count_blocks,
    identify_model,
    summarize_names,
)
from conversion.model_folder import MODEL_CLASSES, read_tokens, read_weights
from conversion.proof import prove
from conversion.reference import ReferenceModel

SOFTWARE = ("bert-snli", "transformers", "tokenizers", "torch", "numpy")
WEIGHT_DTYPES = ("float16", "float32", "float64")
MAX_LABELS = 1000
# The shapes of the tensors do not show the number of attention heads. d2l's models:
NUM_ATTENTION_HEADS = {  # (hidden_size, intermediate_size, num_hidden_layers) → number
    (256, 512, 2): 4,  # bert.small
    (768, 3072, 12): 12,  # bert.base
    (128, 128, 2): 2,  # d2l's first edition
    (128, 256, 2): 2,  # section 15.10
}


def write_model_folder(
    files: CheckpointFiles,
    tokens: list[str],
    checkpoint: Checkpoint,
    output_dir: Path,
    *,
    num_attention_heads: int | None,
    do_lower_case: bool,
    overwrite_output_dir: bool,
    finish: Callable[[Path], None] | None,
) -> Certificate:
    """Write a checkpoint, which was read from `files`, to `output_dir`; see `conversion.convert.convert_checkpoint`."""
    model_kind, tensor_names = identify_model(checkpoint)
    config = _read_config_from_shapes(checkpoint, model_kind, num_attention_heads)
    if len(tokens) != config.vocab_size:
        raise BertSnliError(
            f"{files.vocabulary}: {len(tokens)} tokens, but {files.params} has {config.vocab_size} embedding "
            "rows; take the vocab.json that was saved with these weights"
        )
    tokenizer = build_tokenizer(tokens, model_max_length=config.max_position_embeddings, do_lower_case=do_lower_case)
    config.pad_token_id = tokenizer.pad_token_id
    with torch.device("meta"):
        model = MODEL_CLASSES[model_kind](config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    weights = _rename_weights(checkpoint, tensor_names, shapes)
    records = _record_tensors(checkpoint, tensor_names, weights)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, assign=True)
    with atomic_folder(output_dir, overwrite=overwrite_output_dir) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if read_tokens(folder) != tokens:
            raise BertSnliError(f"{files.vocabulary}: the tokenizer made from it has other ids; please report this")
        check_tensors(read_weights(folder), [record.target for record in records if record.target], folder / WEIGHTS)
        reference = ReferenceModel(checkpoint, config.num_attention_heads)
        certificate = Certificate(
            source=_record_source(files, checkpoint.framework, model_kind),
            software={name: importlib.metadata.version(name) for name in SOFTWARE},
            geometry={name: getattr(config, name) for name in SIZES},
            tensors=records,
            files=sha256_of_files(folder),
            proof=prove(reference, folder, MODEL_CLASSES[model_kind]),
        )
        certificate.write(folder)
        if finish:
            finish(folder)
    return certificate


def _read_config_from_shapes(checkpoint: Checkpoint, model_kind: str, num_attention_heads: int | None) -> D2LBertConfig:
    path, arrays = checkpoint.path, checkpoint.arrays

    def shape(name: str, dimensions: int = 2) -> tuple[int, ...]:
        found = arrays[name].shape
        if len(found) != dimensions or 0 in found:
            raise BertSnliError(f"{path}: {name} has shape {found}; d2l's has {dimensions} dimensions, none empty")
        return found

    encoder = "bert.encoder" if model_kind == MLP_CLASSIFIER else "encoder"
    num_blocks = count_blocks(arrays)
    vocab_size, hidden_size = shape(f"{encoder}.token_embedding.weight")
    intermediate_size = shape(f"{encoder}.blks.0.ffn.dense1.weight")[0]
    if num_attention_heads is None:
        num_attention_heads = NUM_ATTENTION_HEADS.get((hidden_size, intermediate_size, num_blocks))
    if num_attention_heads is None:
        raise BertSnliError(
            f"{path}: no model of d2l's has hidden_size {hidden_size}, intermediate_size {intermediate_size} and "
            f"{num_blocks} blocks, and no tensor shows the number of attention heads; set num_attention_heads"
        )
    try:
        config = D2LBertConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_blocks,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
            max_position_embeddings=shape(f"{encoder}.pos_embedding", 3)[1],
            type_vocab_size=shape(f"{encoder}.segment_embedding.weight")[0],
        )
    except ValueError as error:
        raise BertSnliError(f"{path}: num_attention_heads {num_attention_heads}: {error}") from error
    num_labels = len(D2L_LABELS)  # of a classifier that is fine-tuned from a pretrained model
    if model_kind == MLP_CLASSIFIER:
        config.classifier_head = "mlp"
        config.classifier_hidden_size = shape("classifier.0.weight")[0]
        num_labels = shape("classifier.1.weight" if checkpoint.framework == MXNET else "classifier.2.weight")[0]
    elif model_kind == CLASSIFIER:
        num_labels = shape("output.weight")[0]
    if num_labels > MAX_LABELS:
        raise BertSnliError(f"{path}: its output layer has {num_labels:,} rows; a classifier has one for each label")
    if num_labels == len(D2L_LABELS):
        config.id2label, config.label2id = dict(ID2LABEL), dict(LABEL2ID)
    else:
        config.num_labels = num_labels
    return config


def _rename_weights(
    checkpoint: Checkpoint, tensor_names: list[TensorNames], shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The weights of the model, whose tensors have `shapes`. All get the widest type in the checkpoint."""
    path = checkpoint.path
    used = [names for names in tensor_names if names.hugging_face]
    check_names((names.hugging_face for names in used), shapes, path)
    weights, non_finite = {}, []
    for names in used:
        name, shape = names.d2l(checkpoint.framework), shapes[names.hugging_face]
        array, saved_name = checkpoint.arrays[name], checkpoint.saved_names[name]
        if array.shape != ((1, *shape) if names.leading_one else shape):
            raise BertSnliError(f"{path}: {saved_name} has shape {array.shape}, but the other tensors ask for {shape}")
        if array.dtype.name not in WEIGHT_DTYPES:
            raise BertSnliError(f"{path}: {saved_name} is of type {array.dtype}; save float16, float32 or float64")
        if not np.isfinite(array).all():
            non_finite.append(saved_name)
        weights[names.hugging_face] = array.reshape(shape)
    if non_finite:
        raise BertSnliError(f"{path}: NaN or infinite values in {summarize_names(non_finite)}; get the file again")
    dtype = np.result_type(*(array.dtype for array in weights.values()))
    return {name: np.array(array, dtype, order="C") for name, array in weights.items()}


def _record_tensors(
    checkpoint: Checkpoint, tensor_names: list[TensorNames], weights: dict[str, np.ndarray]
) -> list[TensorRecord]:
    records = []
    for names in tensor_names:
        name = names.d2l(checkpoint.framework)
        source = describe_tensor(checkpoint.saved_names[name], checkpoint.arrays[name])
        target = describe_tensor(names.hugging_face, weights[names.hugging_face]) if names.hugging_face else None
        records.append(TensorRecord(source, target))
    return records


def _record_source(files: CheckpointFiles, framework: str, model_kind: str) -> SourceRecord:
    return SourceRecord(
        framework=framework,
        model_kind=model_kind,
        params=files.params.name,
        params_sha256=sha256_of_file(files.params),
        vocabulary=files.vocabulary.name,
        vocabulary_sha256=sha256_of_file(files.vocabulary),
    )
