"""A converted model against the book's equations, layer by layer, on fixed probes.

Both sides compute in float64. What is left of a difference there is some 1e-14, and whatever is wrong with a conversion
stands out: two matrices swapped 1e-1, an epsilon of 1e-12 for 1e-5 still 1e-5. How far the model's own arithmetic
(fp32, as a rule) is from the exact value is measured beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from bert_snli.errors import BertSnliError
from bert_snli.modeling import D2LBertConfig
from conversion.reference import ROWS_AT_ONCE, ReferenceModel

TOLERANCE = 1e-11
LENGTHS = (10, 6, 1)  # of the probe's rows, padded to the longest
HEADS = {  # fields of a model's output → the names of `ReferenceModel.heads`
    "logits": "logits",
    "prediction_logits": "masked language model",
    "seq_relationship_logits": "next sentence",
}


@dataclass(frozen=True)
class Probe:
    """Random tokens, also where the padding is; the second half of each row in segment 1; how long each row is."""

    tokens_BL: np.ndarray
    segments_BL: np.ndarray
    lengths_B: np.ndarray


@dataclass(frozen=True)
class Difference:
    """max |Δ| / max |exact| of one layer on the probe: of the model in float64, and in its own arithmetic.

    `None` where the exact value is not finite, as happens with broken weights: nothing can be said there.
    """

    layer: str
    exact: float | None
    as_run: float | None


def make_probe(config: D2LBertConfig) -> Probe:
    """The input that a conversion is tried on: the same for all models of one size."""
    lengths_B = np.minimum(LENGTHS, config.max_position_embeddings)
    shape = (len(lengths_B), int(lengths_B.max()))
    tokens_BL = np.random.default_rng(0).integers(0, config.vocab_size, shape)
    segments_BL = (np.arange(shape[1]) >= lengths_B[:, None] // 2) * min(1, config.type_vocab_size - 1)
    return Probe(tokens_BL, segments_BL, lengths_B)


def prove(book: ReferenceModel, folder: Path, model_class: type[PreTrainedModel]) -> list[Difference]:
    """Compare the model in `folder` with `book`, layer by layer.

    Raises:
        BertSnliError: a layer differs by more than rounding.
    """
    model = _load(folder, model_class)
    probe = make_probe(model.config)
    expected = _book_outputs(book, probe)
    inputs = _model_inputs(probe)
    encoded, outputs = {}, {}
    with torch.no_grad():
        for name, arithmetic in ARITHMETIC.items():
            with arithmetic(model):
                encoded[name] = model.bert(**inputs, output_hidden_states=True)
        model = _load(folder, model_class)  # afresh: blocks and heads need not lie in memory together
        for name, arithmetic in ARITHMETIC.items():
            model.bert.forward = lambda *_, encoded=encoded[name], **__: encoded
            with arithmetic(model):
                outputs[name] = _model_outputs(encoded[name], model(**inputs))
    for ours in outputs.values():
        if ours.keys() != expected.keys():
            raise BertSnliError(f"the model has layers {', '.join(ours)}; the checkpoint has {', '.join(expected)}")
    differences = [
        Difference(layer, **{name: relative_difference(ours[layer], value) for name, ours in outputs.items()})
        for layer, value in expected.items()
    ]
    for difference in differences:
        if difference.exact is not None and not difference.exact <= TOLERANCE:  # NaN included
            raise BertSnliError(
                f"{book.checkpoint.path}: {difference.layer} of the model differs from the book's equations by "
                f"{difference.exact:.1e} of its largest value; it is not the model of this file, or its numbers "
                "are too large to tell"
            )
    return differences


def relative_difference(ours: np.ndarray, exact: np.ndarray) -> float | None:
    """max |Δ| / max |exact|; `None` if `exact` is not finite."""
    if not np.isfinite(exact).all():
        return None
    return float(np.abs(ours - exact).max() / (np.abs(exact).max() or 1.0))


def _load(folder: Path, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """The model as users load it, but for settings of theirs that have nothing to do with its numbers."""
    try:
        return model_class.from_pretrained(folder, attn_implementation="sdpa", use_safetensors=True).eval()
    except Exception as error:  # transformers raises nearly any type on a configuration that makes no sense
        reason = " ".join(str(error).split())
        raise BertSnliError(f"{folder}: cannot be loaded ({reason}); convert the checkpoint again") from error


def _book_outputs(book: ReferenceModel, probe: Probe) -> dict[str, np.ndarray]:
    layers = book.layers(probe.tokens_BL, probe.segments_BL, probe.lengths_B)
    return {**{_layer_name(number): layer for number, layer in enumerate(layers)}, **book.heads(layers[-1])}


def _model_inputs(probe: Probe) -> dict[str, torch.Tensor]:
    mask_BL = np.arange(probe.tokens_BL.shape[1]) < probe.lengths_B[:, None]
    return {
        "input_ids": torch.from_numpy(probe.tokens_BL),
        "token_type_ids": torch.from_numpy(probe.segments_BL),
        "attention_mask": torch.from_numpy(mask_BL.astype(np.int64)),
    }


def _model_outputs(encoded: ModelOutput, answers: ModelOutput) -> dict[str, np.ndarray]:
    outputs = {_layer_name(number): layer for number, layer in enumerate(encoded.hidden_states)}
    if encoded.pooler_output is not None:
        outputs["pooler"] = encoded.pooler_output
    outputs.update((HEADS[field], value) for field, value in answers.items() if field in HEADS)
    return {name: value.double().numpy() for name, value in outputs.items()}


def _layer_name(number: int) -> str:
    return f"block {number}" if number else "embeddings"


@contextmanager
def _in_float64(model: nn.Module) -> Iterator[None]:
    """The model's own forward pass in float64, its weights left as they are and widened chunk by chunk."""
    changed = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.forward = partial(_linear, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.LayerNorm):
            module.forward = partial(_layer_norm, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.Embedding):
            module.forward = partial(_embedding, module)  # type: ignore[method-assign]
        else:
            continue
        changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward  # the class's own again


def _linear(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    y = torch.empty(*x.shape[:-1], module.out_features, dtype=torch.float64)
    for start in range(0, module.out_features, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        y[..., rows] = F.linear(x.double(), module.weight[rows].double(), module.bias[rows].double())
    return y


def _layer_norm(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    weight, bias = module.weight.double(), module.bias.double()
    return F.layer_norm(x.double(), module.normalized_shape, weight, bias, module.eps)


def _embedding(module: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    return F.embedding(ids, module.weight).double()


ARITHMETIC: dict[str, Callable[[nn.Module], AbstractContextManager]] = {"exact": _in_float64, "as_run": nullcontext}
