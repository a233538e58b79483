"""Read model folders of `transformers`, and rename their weights to d2l's names."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from bert_snli.errors import BertSnliError
from bert_snli.files import CONFIG, TOKENIZER, WEIGHTS
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining, D2LBertForSequenceClassification
from conversion.checkpoint import Checkpoint
from conversion.d2l_layout import CLASSIFIER, MLP_CLASSIFIER, PRETRAINING, PYTORCH, check_names, name_map

MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    PRETRAINING: D2LBertForPreTraining,
    CLASSIFIER: D2LBertForSequenceClassification,
    MLP_CLASSIFIER: D2LBertForSequenceClassification,
}


def read_config(folder: Path) -> tuple[D2LBertConfig, str]:
    """Read the configuration and the kind of model (`PRETRAINING`, `CLASSIFIER` or `MLP_CLASSIFIER`) of a folder."""
    path = folder / CONFIG
    try:
        config = D2LBertConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
        architecture = config.architectures[0] if config.architectures else None
    except OSError as error:
        raise BertSnliError(f"{path}: {error.strerror}; give a model folder") from error
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise BertSnliError(f"{path}: cannot be read as a configuration ({error}); convert again") from error
    if config.model_type != D2LBertConfig.model_type:
        raise BertSnliError(f"{path}: a model of type {config.model_type!r}; give one of type d2l_bert")
    if architecture == D2LBertForPreTraining.__name__:
        return config, PRETRAINING
    if architecture != D2LBertForSequenceClassification.__name__:
        raise BertSnliError(f"{path}: d2l has no class for {architecture}; give a pretrained model or a classifier")
    kinds = {"pooler": CLASSIFIER, "mlp": MLP_CLASSIFIER}
    if config.classifier_head not in kinds:
        what = f"has a {config.classifier_head} classifier, which d2l does not have"
        raise BertSnliError(f"{folder}: {what}; fine-tune a pretrained model with classifier_head pooler")
    return config, kinds[config.classifier_head]


def read_tokens(folder: Path) -> list[str]:
    """Read the tokens of the tokenizer in the order of their ids."""
    path = folder / TOKENIZER
    try:
        ids = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the Rust reader raises bare Exception
        raise BertSnliError(f"{path}: cannot be read ({error}); convert the checkpoint again") from error
    if sorted(ids.values()) != list(range(len(ids))):
        raise BertSnliError(f"{path}: its ids are not 0 to {len(ids) - 1}, as d2l needs; give a model with such ids")
    return sorted(ids, key=ids.__getitem__)


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """Read the tensors in `model.safetensors`."""
    path = folder / WEIGHTS
    try:
        return load_file(path)
    except (OSError, SafetensorError, TypeError, AttributeError) as error:  # the last two: bfloat16
        raise BertSnliError(f"{path}: cannot be read ({error}); convert again, or save the model in float32") from error


def rename_to_d2l(
    path: Path, weights: dict[str, np.ndarray], model_kind: str, num_blocks: int, framework: str = PYTORCH
) -> Checkpoint:
    """Rename `weights`, which were read from `path`, to d2l's names, and give them d2l's shapes."""
    used = [names for names in name_map(model_kind, num_blocks) if names.hugging_face]
    check_names(weights, (names.hugging_face for names in used), path)
    arrays = {}
    for names in used:
        array = weights[names.hugging_face]
        arrays[names.d2l(framework)] = array[None] if names.leading_one else array
    return Checkpoint(path, framework, arrays, {name: name for name in arrays})
