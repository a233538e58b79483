"""Compare a converted model with d2l's equations, layer by layer, on a fixed input.

The difference of a correct conversion is about 1e-15 in float64. Two swapped matrices give 1e-1, and a wrong LayerNorm
epsilon gives 1e-5.
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


@dataclass(frozen=True)
class LayerDifference:
    """max|model - reference| / max|reference| of one layer, with the model in float64 and in its own dtype."""

    layer: str
    in_float64: float
    in_model_dtype: float


def make_probe(config: D2LBertConfig) -> dict[str, np.ndarray]:
    """Return the input of the comparison (B, L): several lengths, both segments, and random tokens also as padding."""
    lengths_B1 = np.minimum(PROBE_LENGTHS, config.max_position_embeddings)[:, None]
    positions_L = np.arange(lengths_B1.max())
    shape = (len(lengths_B1), len(positions_L))
    return {
        "input_ids": np.random.default_rng(0).integers(0, config.vocab_size, shape),
        "token_type_ids": (positions_L >= lengths_B1 // 2) * min(1, config.type_vocab_size - 1),
        "attention_mask": (positions_L < lengths_B1).astype(np.int64),
    }


def prove(reference: ReferenceModel, folder: Path, model_class: type[PreTrainedModel]) -> list[LayerDifference]:
    """Compare the model in `folder` with `reference`. Raise `BertSnliError` if a layer differs beyond rounding."""
    model = model_class.from_pretrained(folder, attn_implementation="sdpa", use_safetensors=True).eval()
    probe = make_probe(model.config)
    expected = reference.compute_layers(**probe)
    in_model_dtype = _compute_layers(model, probe)
    in_float64 = _compute_layers(model.double(), probe)
    differences = []
    for layer, exact in expected.items():
        difference = relative_difference(in_float64[layer], exact)
        if not difference <= TOLERANCE:  # also true for NaN
            what = f"{layer} differs from d2l's equations by {difference:.1e} of its largest value"
            reason = "the model was changed, or has values that are too large to compare"
            raise BertSnliError(f"{reference.path}: {what} ({reason}); convert the checkpoint again")
        differences.append(LayerDifference(layer, difference, relative_difference(in_model_dtype[layer], exact)))
    return differences


def relative_difference(found: np.ndarray, reference: np.ndarray) -> float:
    """Return max|found - reference| / max|reference|."""
    return float(np.abs(found - reference).max() / (np.abs(reference).max() or 1.0))


@torch.no_grad()
def _compute_layers(model: PreTrainedModel, probe: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    inputs = {name: torch.from_numpy(array) for name, array in probe.items()}
    encoded = model.bert(**inputs, output_hidden_states=True)
    embeddings, *blocks = encoded.hidden_states
    layers = {"embeddings": embeddings, **{f"block {number}": block for number, block in enumerate(blocks, 1)}}
    if encoded.pooler_output is not None:
        layers["pooler"] = encoded.pooler_output
    layers.update((field, value) for field, value in model(**inputs).items() if field.endswith("logits"))
    return {name: value.double().numpy() for name, value in layers.items()}
