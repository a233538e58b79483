"""Comparison of a converted model with d2l's equations, layer by layer, on a fixed input.

Each difference is max|model - reference| / max|reference|. The reference is computed in float64. The model is computed
in float64, where a correct conversion differs by about 1e-15 (two swapped matrices: 1e-1; a wrong LayerNorm epsilon:
1e-5), and in the dtype of its weights, which shows its rounding error.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from bert_snli.errors import BertSnliError
from bert_snli.modeling import D2LBertConfig
from conversion.reference import ReferenceModel

TOLERANCE = 1e-11
PROBE_LENGTHS = (10, 6, 1)
OUTPUT_NAMES = {  # fields of a model's output → names in `ReferenceModel.compute_outputs`
    "logits": "logits",
    "prediction_logits": "masked language model",
    "seq_relationship_logits": "next sentence",
}


@dataclass(frozen=True)
class LayerDifference:
    """max|model - reference| / max|reference| of one layer, with the model in float64 and in its own dtype."""

    layer: str
    in_float64: float
    in_model_dtype: float


def make_probe(config: D2LBertConfig) -> dict[str, np.ndarray]:
    """The input of the comparison, (B, L): rows of several lengths, both segments, random tokens even as padding."""
    lengths_B1 = np.minimum(PROBE_LENGTHS, config.max_position_embeddings)[:, None]
    positions_L = np.arange(lengths_B1.max())
    shape = (len(lengths_B1), len(positions_L))
    return {
        "input_ids": np.random.default_rng(0).integers(0, config.vocab_size, shape),
        "token_type_ids": (positions_L >= lengths_B1 // 2) * min(1, config.type_vocab_size - 1),
        "attention_mask": (positions_L < lengths_B1).astype(np.int64),
    }


def prove(reference: ReferenceModel, folder: Path, model_class: type[PreTrainedModel]) -> list[LayerDifference]:
    """Compare the model in `folder` with `reference`. A layer that differs by more than rounding is an error."""
    model = _load(folder, model_class)
    probe = make_probe(model.config)
    expected = _compute_reference_outputs(reference, probe)
    in_model_dtype = _compute_model_outputs(model, probe)
    in_float64 = _compute_model_outputs(model.double(), probe)
    if in_float64.keys() != expected.keys():
        raise BertSnliError(
            f"{reference.path}: the model has layers {', '.join(in_float64)}; the checkpoint has {', '.join(expected)}"
        )
    differences = []
    for layer, exact in expected.items():
        difference = relative_difference(in_float64[layer], exact)
        if not difference <= TOLERANCE:  # also true for NaN
            raise BertSnliError(
                f"{reference.path}: {layer} of the model differs from d2l's equations by {difference:.1e} of its "
                "largest value; it is not the model of this checkpoint, or its values are too large to tell"
            )
        differences.append(LayerDifference(layer, difference, relative_difference(in_model_dtype[layer], exact)))
    return differences


def relative_difference(found: np.ndarray, reference: np.ndarray) -> float:
    """max|found - reference| / max|reference|."""
    return float(np.abs(found - reference).max() / (np.abs(reference).max() or 1.0))


def _load(folder: Path, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    try:
        return model_class.from_pretrained(folder, attn_implementation="sdpa", use_safetensors=True).eval()
    except Exception as error:  # transformers raises nearly any type on a configuration that makes no sense
        reason = " ".join(str(error).split())
        raise BertSnliError(f"{folder}: cannot be loaded ({reason}); convert the checkpoint again") from error


def _compute_reference_outputs(reference: ReferenceModel, probe: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    layers = reference.compute_layers(**probe)
    return {**_name_layers(layers), **reference.compute_outputs(layers[-1])}


@torch.no_grad()
def _compute_model_outputs(model: PreTrainedModel, probe: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    inputs = {name: torch.from_numpy(array) for name, array in probe.items()}
    encoded = model.bert(**inputs, output_hidden_states=True)
    outputs = _name_layers(encoded.hidden_states)
    if encoded.pooler_output is not None:
        outputs["pooler"] = encoded.pooler_output
    outputs.update((OUTPUT_NAMES[field], value) for field, value in model(**inputs).items() if field in OUTPUT_NAMES)
    return {name: value.double().numpy() for name, value in outputs.items()}


def _name_layers(layers: list | tuple) -> dict:
    return {f"block {number}" if number else "embeddings": layer for number, layer in enumerate(layers)}
