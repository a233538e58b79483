"""Converted models against stored outputs of d2l's code, and against d2l's equations in plain PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from bert_snli.modeling import D2LBertForPreTraining, D2LBertForSequenceClassification
from conversion.convert import convert_checkpoint
from tests.support.checkpoints import save_d2l_checkpoint, small_vocabulary
from tests.support.d2l_reference import ReferenceBERT, ReferenceClassifier
from tests.support.real_data import real_data
from tests.support.tolerances import D2L_TOLERANCE, rounding

# d2l's stored outputs are fp32 too, and some are 2e-6 from the exact value (d2l's equations in float64). Two results
# that are each within e of the exact value are within 2 * e of each other.
REFERENCE_ERROR_FACTOR = 2
CHECKPOINTS = ["torch-small", "torch-small-lowvar", "torch-small-sorted-vocab", "torch-tiny", "torch-snli"]
ATTENTION = ["eager", "sdpa"]


def relative_difference(found: torch.Tensor, reference) -> float:
    reference = torch.as_tensor(reference)
    return float((found - reference).abs().max() / reference.abs().max())


def make_mask(valid_lens, length: int) -> torch.Tensor | None:
    if valid_lens is None:
        return None
    return (torch.arange(length)[None, :] < torch.as_tensor(valid_lens)[:, None]).long()


def supported_cases(stored: dict[str, np.ndarray]) -> list[str]:
    """Return the stored cases that the model supports: no `valid_lens` of 0, and one length per row, not per query."""
    cases = {name.split("/")[0] for name in stored if "/" in name}
    return sorted(cases - {"zero", "allpad", "vl2d"})


def compute_outputs(model, tokens, segments, valid_lens, pred_positions) -> dict[str, torch.Tensor]:
    mask = make_mask(valid_lens, tokens.shape[1])
    inputs = {"attention_mask": mask, "token_type_ids": torch.as_tensor(segments)}
    tokens = torch.as_tensor(tokens)
    base = model.bert(tokens, **inputs)
    heads = model(tokens, **inputs)
    rows = torch.arange(len(tokens))[:, None]
    return {
        "encoder": base.last_hidden_state,
        "pooled": base.pooler_output,
        "mlm": heads.prediction_logits[rows, torch.as_tensor(pred_positions)],
        "nsp": heads.seq_relationship_logits,
    }


class Maximum(dict):
    """The largest value added under each name."""

    def add(self, name: str, value: float) -> None:
        self[name] = max(self.get(name, 0.0), value)


def compute_exact_outputs(
    bert: ReferenceBERT, output, tokens, segments, valid_lens, pred_positions
) -> dict[str, torch.Tensor]:
    """Compute d2l's equations in float64."""
    lens = None if valid_lens is None else torch.as_tensor(valid_lens)
    encoded, mlm, nsp = bert(torch.as_tensor(tokens), torch.as_tensor(segments), lens, torch.as_tensor(pred_positions))
    pooled = bert.hidden(encoded[:, 0])
    return {"encoder": encoded, "pooled": pooled, "mlm": mlm, "nsp": nsp, "cls": output(pooled)}


def load_reference_bert(folder: Path, geometry: dict, vocab: int) -> ReferenceBERT:
    bert = ReferenceBERT(
        vocab,
        geometry["num_hiddens"],
        geometry["ffn_num_hiddens"],
        geometry["num_heads"],
        geometry["num_layers"],
        max_len=geometry["max_len"],
    )
    bert.load_state_dict(torch.load(folder / "pretrained.params", weights_only=True))
    return bert.double().eval()


def output_layer_weights(stored: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {"weight": torch.tensor(stored["cls_weight"]), "bias": torch.tensor(stored["cls_bias"])}


class Converted(NamedTuple):
    """A real checkpoint, converted: its stored outputs, and the exact outputs of each case."""

    name: str
    model_folder: Path
    stored: dict[str, np.ndarray]
    exact: dict[str, dict[str, torch.Tensor]]


def read_case(stored: dict[str, np.ndarray], case: str) -> tuple[dict[str, np.ndarray], tuple]:
    """Return the arrays of one case by name, and the inputs of the model among them."""
    arrays = {name.split("/")[1]: value for name, value in stored.items() if name.startswith(case + "/")}
    return arrays, (arrays["tokens"], arrays["segments"], arrays.get("valid_lens"), arrays["pred_positions"])


@pytest.fixture(scope="module", params=CHECKPOINTS)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = real_data(f"checkpoints/{request.param}")
    geometry = json.loads((folder / "meta.json").read_text())["geometry"]
    stored = dict(np.load(folder / "reference.npz"))
    model_folder = tmp_path_factory.mktemp("converted") / "model"
    convert_checkpoint(folder, model_folder, num_attention_heads=geometry["num_heads"])
    vocab_size = json.loads((model_folder / "config.json").read_text())["vocab_size"]
    bert = load_reference_bert(folder, geometry, vocab_size)
    output_layer = ReferenceClassifier(bert).output
    output_layer.load_state_dict(output_layer_weights(stored))
    output_layer.double()
    with torch.no_grad():
        exact = {
            case: compute_exact_outputs(bert, output_layer, *read_case(stored, case)[1])
            for case in supported_cases(stored)
        }
    return Converted(request.param, model_folder, stored, exact)


@pytest.mark.parametrize("attention", ATTENTION)
def test_outputs_equal_stored_outputs_of_d2l_code(converted: Converted, attention: str):
    options = {"attn_implementation": attention}
    model = D2LBertForPreTraining.from_pretrained(converted.model_folder, **options).eval()
    classifier = D2LBertForSequenceClassification.from_pretrained(converted.model_folder, num_labels=3, **options)
    classifier.eval().classifier.load_state_dict(output_layer_weights(converted.stored))

    to_stored, to_exact, stored_error = Maximum(), Maximum(), Maximum()
    for case, exact in converted.exact.items():
        arrays, inputs = read_case(converted.stored, case)
        with torch.no_grad():
            found = compute_outputs(model, *inputs)
            mask = make_mask(arrays.get("valid_lens"), arrays["tokens"].shape[1])
            found["cls"] = classifier(torch.tensor(arrays["tokens"]), mask, torch.tensor(arrays["segments"])).logits
        for output, value in exact.items():
            to_stored.add(output, relative_difference(found[output], arrays[output]))
            to_exact.add(output, relative_difference(found[output], value))
            stored_error.add(output, relative_difference(torch.tensor(arrays[output]), value))
    assert to_exact.keys() == {"encoder", "pooled", "mlm", "nsp", "cls"}
    for output in to_exact:
        print(f"{converted.name:26}{attention:7}{output:9}to d2l {to_stored[output]:.2e}, exact {to_exact[output]:.2e}")
        bound = max(D2L_TOLERANCE, REFERENCE_ERROR_FACTOR * stored_error[output])
        assert max(to_exact[output], to_stored[output]) <= bound, (output, bound)


def test_legacy_checkpoint_saved_on_gpu_converts_to_same_weights(tmp_path: Path):
    convert_checkpoint(real_data("checkpoints/torch-small"), tmp_path / "zip")
    convert_checkpoint(real_data("checkpoints/torch-small-cuda-legacy"), tmp_path / "legacy")
    legacy = D2LBertForPreTraining.from_pretrained(tmp_path / "legacy").state_dict()
    for name, value in D2LBertForPreTraining.from_pretrained(tmp_path / "zip").state_dict().items():
        assert torch.equal(value, legacy[name]), name


@pytest.mark.parametrize("attention", ATTENTION)
def test_fine_tuned_classifier_equals_stored_outputs_of_d2l_code(attention: str, tmp_path: Path):
    folder = real_data("checkpoints/torch-small")
    convert_checkpoint(folder / "classifier.params", tmp_path / "model")
    model = D2LBertForSequenceClassification.from_pretrained(tmp_path / "model", attn_implementation=attention).eval()
    assert list(model.config.id2label.values()) == ["entailment", "contradiction", "neutral"]
    reference = np.load(folder / "reference.npz")
    tokens = torch.tensor(reference["pairs/tokens"])
    with torch.no_grad():
        logits = model(
            tokens,
            attention_mask=make_mask(reference["pairs/valid_lens"], tokens.shape[1]),
            token_type_ids=torch.tensor(reference["pairs/segments"]),
        ).logits
    assert relative_difference(logits, reference["pairs/cls"]) <= D2L_TOLERANCE


def random_batch(rows: int = 6, length: int = 20, vocab: int = 50):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, vocab, (rows, length), generator=generator)
    segments = torch.randint(0, 2, (rows, length), generator=generator)
    valid_lens = torch.randint(1, length + 1, (rows,), generator=generator)
    return tokens, segments, valid_lens


@pytest.mark.parametrize("attention", ATTENTION)
def test_outputs_equal_d2l_equations(
    attention: str, d2l_checkpoint: Path, reference_bert: ReferenceBERT, tmp_path: Path
):
    convert_checkpoint(d2l_checkpoint, tmp_path / "model", num_attention_heads=2)
    model = D2LBertForPreTraining.from_pretrained(tmp_path / "model", attn_implementation=attention).eval()
    tokens, segments, valid_lens = random_batch()
    positions = torch.tensor([[1, 3, 5]] * len(tokens))
    with torch.no_grad():
        found = compute_outputs(model, tokens, segments, valid_lens, positions)
        encoded, mlm, nsp = reference_bert(tokens, segments, valid_lens, positions)
    for name, value in {"encoder": encoded, "mlm": mlm, "nsp": nsp}.items():
        assert relative_difference(found[name], value) <= rounding(model.config), name


def test_hidden_states_and_attentions_equal_d2l_equations(
    d2l_checkpoint: Path, reference_bert: ReferenceBERT, tmp_path: Path
):
    convert_checkpoint(d2l_checkpoint, tmp_path / "model", num_attention_heads=2)
    model = D2LBertForPreTraining.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    tokens, segments, valid_lens = random_batch()
    with torch.no_grad():
        found = model(
            tokens,
            make_mask(valid_lens, tokens.shape[1]),
            segments,
            output_hidden_states=True,
            output_attentions=True,
        )
        hidden = []
        for block in reference_bert.encoder.blks:
            block.register_forward_hook(lambda _module, _inputs, output: hidden.append(output))
        reference_bert(tokens, segments, valid_lens)
    assert len(found.hidden_states) == len(hidden) + 1 and len(found.attentions) == len(hidden)
    for number, block in enumerate(reference_bert.encoder.blks):
        assert relative_difference(found.hidden_states[number + 1], hidden[number]) <= rounding(model.config)
        maps = block.attention.attention_weights.unflatten(0, (len(tokens), -1))
        assert relative_difference(found.attentions[number], maps) <= rounding(model.config)


def test_fine_tuned_classifier_equals_d2l_equations(reference_bert: ReferenceBERT, tmp_path: Path):
    reference = ReferenceClassifier(reference_bert).eval()
    source = save_d2l_checkpoint(tmp_path / "d2l", reference.state_dict(), small_vocabulary())
    convert_checkpoint(source, tmp_path / "model", num_attention_heads=2)
    model = D2LBertForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokens, segments, valid_lens = random_batch()
    with torch.no_grad():
        logits = model(tokens, make_mask(valid_lens, tokens.shape[1]), segments).logits
        assert relative_difference(logits, reference(tokens, segments, valid_lens)) <= rounding(model.config)
