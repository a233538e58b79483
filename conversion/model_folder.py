"""Model folders of `transformers`, seen as checkpoints of the book's and written from them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bert_snli.errors import BertSnliError
from bert_snli.files import CONFIG, TOKENIZER, WEIGHTS
from bert_snli.modeling import (
    D2LBertConfig,
    D2LBertForPreTraining,
    D2LBertForSequenceClassification,
)
from conversion.checkpoint import Checkpoint, TensorInfo
from conversion.d2l_layout import PYTORCH, Rule, check_names, rules_for
from conversion.weights_file import SAFETENSORS_DTYPES, WeightsFile

MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "pretraining": D2LBertForPreTraining,
    "classifier": D2LBertForSequenceClassification,
    "first-form classifier": D2LBertForSequenceClassification,
}
FORM_OF_HEAD = {"pooler": "classifier", "mlp": "first-form classifier"}  # the book's heads
NUMPY_DTYPES = {code: name for name, code in SAFETENSORS_DTYPES.items()}


def model_shapes(form: str, config: D2LBertConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the model of `form` has."""
    return {name: tuple(value.shape) for name, value in _skeleton(form, config).state_dict().items()}


def _skeleton(form: str, config: D2LBertConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return MODEL_CLASSES[form](config)


def save_all_but_weights(
    folder: Path, form: str, config: D2LBertConfig, dtype: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Everything that `save_pretrained` writes, for weights of `dtype` that are written apart."""
    model = _skeleton(form, config).to(getattr(torch, dtype))
    model.save_pretrained(folder, state_dict={})
    tokenizer.save_pretrained(folder)


def write_weights(folder: Path, tensors: dict[str, TensorInfo]) -> WeightsFile:
    """`model.safetensors` of `folder`, to append the arrays of `tensors` to."""
    return WeightsFile(folder / WEIGHTS, tensors)


def read_config(folder: Path) -> tuple[str, D2LBertConfig]:
    """The form (see `d2l_layout.FORMS`, or another that `rules_of` refuses) and the configuration of a model folder.

    Raises:
        BertSnliError: not a model folder, or one of a model that the book has no class for.
    """
    if not folder.is_dir():
        raise BertSnliError(f"{folder}: no such folder; give one that bert-snli convert or bert-snli finetune wrote")
    try:
        config = D2LBertConfig.from_dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        architecture = str((config.architectures or ["none"])[0])
    except OSError as error:
        raise BertSnliError(
            f"{folder / CONFIG}: {error.strerror}; give a folder that bert-snli convert wrote"
        ) from error
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise BertSnliError(f"{folder / CONFIG}: not the configuration of a model ({error}); convert again") from error
    if config.model_type != D2LBertConfig.model_type:
        raise BertSnliError(f"{folder / CONFIG}: a model of type {config.model_type!r}; give one of ours")
    if architecture == D2LBertForPreTraining.__name__:
        return "pretraining", config
    if architecture == D2LBertForSequenceClassification.__name__:
        return FORM_OF_HEAD.get(config.classifier_head, f"{config.classifier_head} classifier"), config
    raise BertSnliError(
        f"{folder / CONFIG}: holds a {architecture}, and the book has no such class; give a "
        f"{D2LBertForPreTraining.__name__} or a {D2LBertForSequenceClassification.__name__}"
    )


def read_vocabulary_of(folder: Path) -> list[str]:
    """The tokens of the folder's tokenizer in the order of their ids.

    Raises:
        BertSnliError: no tokenizer.json that can be read, or ids with a gap.
    """
    path = folder / TOKENIZER
    try:
        ids = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the Rust reader raises bare Exception
        raise BertSnliError(f"{path}: cannot be read ({error}); convert the checkpoint again") from error
    if sorted(ids.values()) != list(range(len(ids))):
        raise BertSnliError(f"{path}: its ids are not 0 to {len(ids) - 1}; the book's vocab.json knows no gaps")
    return sorted(ids, key=ids.__getitem__)


def read_weights(folder: Path) -> Checkpoint:
    """The tensors of `model.safetensors` under their own names.

    Raises:
        BertSnliError: it is missing or damaged.
    """
    path = folder / WEIGHTS
    tensors = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                place = file.get_slice(name)
                dtype = NUMPY_DTYPES.get(place.get_dtype())
                if dtype is None:
                    raise BertSnliError(f"{path}: {name} is of type {place.get_dtype()}; save the model in float32")
                tensors[name] = TensorInfo(tuple(place.get_shape()), dtype, name)
    except (OSError, SafetensorError) as error:
        raise BertSnliError(f"{path}: cannot be read ({error}); convert the checkpoint again") from error

    def read(names: Iterable[str]) -> dict[str, np.ndarray]:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in names}

    return Checkpoint(path, PYTORCH, tensors, read)


def rename_to_d2l(weights: Checkpoint, rules: list[Rule], framework: str = PYTORCH) -> Checkpoint:
    """`weights` of a model folder under the book's names and in its shapes: the map read from right to left.

    Raises:
        BertSnliError: a tensor of the model is missing or unexpected.
    """
    kept = {rule.d2l(framework): rule for rule in rules if rule.hugging_face}
    check_names(weights.tensors, (rule.hugging_face for rule in kept.values()), str(weights.path))

    def info(rule: Rule) -> TensorInfo:
        found = weights.tensors[rule.hugging_face]
        shape = (1, *found.shape) if rule.leading_one else found.shape
        return TensorInfo(shape, found.dtype, rule.d2l(framework))

    def read(names: Iterable[str]) -> dict[str, np.ndarray]:
        wanted = {name: kept[name] for name in names}
        arrays = weights.read(rule.hugging_face for rule in wanted.values())
        return {name: arrays[rule.hugging_face].reshape(info(rule).shape) for name, rule in wanted.items()}

    return Checkpoint(weights.path, framework, {name: info(rule) for name, rule in kept.items()}, read)


def rules_of(form: str, config: D2LBertConfig, weights: Checkpoint) -> list[Rule]:
    """The name map of a model folder.

    Raises:
        BertSnliError: a form that the book has not; its configuration names more blocks than its weights can hold.
    """
    if form not in MODEL_CLASSES:
        raise BertSnliError(
            f"{weights.path}: of a {form}, which the book has no file for; fine-tune a pretrained model with "
            "--classifier_head pooler"
        )
    blocks = config.num_hidden_layers
    if not isinstance(blocks, int) or blocks > len(weights.tensors):
        raise BertSnliError(f"{weights.path}: {len(weights.tensors)} tensors, but config.json names {blocks} blocks")
    return rules_for(form, blocks)
