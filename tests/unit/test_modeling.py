"""The models through the interfaces of `transformers`: saving, masks, outputs, losses, heads, training, offloading."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, init_empty_weights, load_checkpoint_and_dispatch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.utils import TransformersKwargs

from bert_snli.modeling import (
    D2LBertConfig,
    D2LBertForMaskedLM,
    D2LBertForPreTraining,
    D2LBertForSequenceClassification,
    D2LBertModel,
)
from bert_snli.modeling.configuration_d2l_bert import CLASSIFIER_HEADS
from bert_snli.modeling.labels import ID2LABEL, LABEL2ID
from conversion.convert import convert_checkpoint
from tests.support.checkpoints import save_d2l_checkpoint, small_vocabulary
from tests.support.d2l_reference import ReferenceBERT
from tests.support.tolerances import rounding
from tests.support.without_package import run_without_package

AUTO_CLASSES = {
    AutoModel: D2LBertModel,
    AutoModelForPreTraining: D2LBertForPreTraining,
    AutoModelForMaskedLM: D2LBertForMaskedLM,
    AutoModelForSequenceClassification: D2LBertForSequenceClassification,
}
MODEL_CLASSES = list(AUTO_CLASSES.values())
LM_CLASSES = [D2LBertForPreTraining, D2LBertForMaskedLM]
ATTENTION = ["eager", "sdpa"]
CODE_FILES = {
    "configuration_d2l_bert.py",
    "layers_d2l_bert.py",
    "modeling_d2l_bert.py",
    "nli_pipeline.py",
    "pair_truncation.py",
}
VOCAB_SIZE, HIDDEN_SIZE, LAYERS, HEADS = 50, 16, 2, 2
ROWS, LENGTH = 4, 9


def tiny_config(**changes) -> D2LBertConfig:
    """Return the configuration of a small model, with weights so large that errors change the outputs clearly."""
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 24,
        "max_position_embeddings": 20,
        "classifier_hidden_size": 12,
        "initializer_range": 0.5,
        "num_labels": 3,
    }
    return D2LBertConfig(**(sizes | changes))


FP32_ROUNDING = rounding(tiny_config())
FP64_ROUNDING = rounding(tiny_config(), torch.float64)  # stricter than fp32's: used where no kernel needs fp32
# Kernels sum bf16 in fp32 and round the result of an operation by up to eps / 2; a block has about ten operations.
BF16_ROUNDING = LAYERS * 10 * torch.finfo(torch.bfloat16).eps / 2


def make_model(model_class: type[PreTrainedModel], attention: str = "sdpa", **changes):
    torch.manual_seed(0)
    model = model_class(tiny_config(**changes)).eval()
    model.set_attn_implementation(attention)
    return model


def random_ids(rows: int = ROWS, length: int = LENGTH, seed: int = 1) -> torch.Tensor:
    return torch.randint(5, VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(seed))


def batch(seed: int = 1) -> dict[str, torch.Tensor]:
    """Return rows of different lengths, with two segments."""
    lengths = torch.tensor([LENGTH, 6, 4, 1])
    return {
        "input_ids": random_ids(seed=seed),
        "attention_mask": (torch.arange(LENGTH) < lengths[:, None]).long(),
        "token_type_ids": (torch.arange(LENGTH) >= lengths[:, None] // 2).long(),
    }


def outputs(model: PreTrainedModel, **inputs) -> dict[str, torch.Tensor]:
    """Return every output tensor of `model` by name, with zeros at padding."""
    mask = inputs.get("attention_mask", torch.ones(inputs["input_ids"].shape))
    with torch.no_grad():
        named = dict(model(**inputs))
    return {name: value * mask[..., None] if value.shape[:2] == mask.shape else value for name, value in named.items()}


def assert_same(found: dict, expected: dict, tolerance: float = 0.0) -> None:
    """Compare tensors by name; `tolerance` is relative to the largest value of each."""
    assert found.keys() == expected.keys()
    for name in expected:
        difference = (found[name] - expected[name]).abs().max().item()
        assert difference <= tolerance * expected[name].abs().max().item(), f"{name}: {difference}"


# Auto classes and saved folders


@pytest.mark.parametrize(("auto_class", "model_class"), AUTO_CLASSES.items())
def test_auto_class_loads_same_weights_from_saved_folder(auto_class, model_class, tmp_path: Path):
    model = make_model(model_class)
    model.save_pretrained(tmp_path)
    loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is model_class
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same(loaded.state_dict(), model.state_dict())
    assert_same(outputs(loaded, **batch()), outputs(model, **batch()))


def test_auto_config_loads_saved_configuration(tmp_path: Path):
    make_model(D2LBertForPreTraining, classifier_head="mlp").save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is D2LBertConfig
    assert (config.hidden_size, config.classifier_head) == (HIDDEN_SIZE, "mlp")


def test_saved_configuration_includes_its_code(tmp_path: Path):
    tiny_config().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "configuration_d2l_bert.py"}
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {"AutoConfig": "configuration_d2l_bert.D2LBertConfig"}


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_saved_folder_contains_safetensors_and_code_of_every_auto_class(model_class, tmp_path: Path):
    make_model(model_class).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == CODE_FILES | {"config.json", "model.safetensors"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [model_class.__name__]
    assert config["auto_map"] == {
        "AutoConfig": "configuration_d2l_bert.D2LBertConfig",
        **{auto.__name__: f"modeling_d2l_bert.{model.__name__}" for auto, model in AUTO_CLASSES.items()},
    }


def test_every_model_class_loads_same_pretrained_encoder(tmp_path: Path):
    pretrained = make_model(D2LBertForPreTraining)
    pretrained.save_pretrained(tmp_path)
    for model_class in MODEL_CLASSES:
        loaded = model_class.from_pretrained(tmp_path)
        for name, value in loaded.base_model.state_dict().items():
            assert torch.equal(value, pretrained.bert.state_dict()[name]), (model_class, name)


@pytest.mark.parametrize("model_class", [D2LBertForMaskedLM, D2LBertForSequenceClassification])
def test_unused_pretraining_heads_are_not_reported_as_unexpected(model_class, tmp_path: Path):
    make_model(D2LBertForPreTraining).save_pretrained(tmp_path)
    _, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]


RESAVE = """
import shutil
import torch, transformers

ids, logits = torch.tensor(arguments["ids"]), {}
for auto, (source, target) in arguments["folders"].items():
    auto_class = getattr(transformers, auto)
    model = auto_class.from_pretrained(source, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    model.save_pretrained(target)
    shutil.rmtree(source)
    reloaded = auto_class.from_pretrained(target, trust_remote_code=True).eval()
    logits[auto] = reloaded(ids, return_dict=False)[0].tolist()
config = transformers.AutoConfig.from_pretrained(target, trust_remote_code=True)
config.save_pretrained(arguments["config"])
transformers.AutoConfig.from_pretrained(arguments["config"], trust_remote_code=True)
print(json.dumps(logits))
"""


@pytest.mark.slow
def test_folder_saved_again_without_package_includes_its_code(tmp_path: Path):
    ids, models, folders = random_ids(), {}, {}
    for auto_class, model_class in AUTO_CLASSES.items():
        name = auto_class.__name__
        models[name] = make_model(model_class)
        folders[name] = [str(tmp_path / f"{name}-{side}") for side in ("source", "target")]
        models[name].save_pretrained(folders[name][0])
    logits = run_without_package(RESAVE, tmp_path, ids=ids.tolist(), folders=folders, config=str(tmp_path / "config"))
    for name, model in models.items():
        with torch.no_grad():
            expected = model(ids, return_dict=False)[0]
        assert_same({name: torch.tensor(logits[name])}, {name: expected}, FP32_ROUNDING)
        assert {path.name for path in Path(folders[name][1]).iterdir()} >= CODE_FILES
    assert "configuration_d2l_bert.py" in {path.name for path in (tmp_path / "config").iterdir()}


def test_from_pretrained_loads_bfloat16_on_request(tmp_path: Path):
    model = make_model(D2LBertForSequenceClassification)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.bfloat16}
    for attention in ATTENTION:
        loaded.set_attn_implementation(attention)
        found = outputs(loaded, **batch())
        assert found["logits"].dtype == torch.bfloat16
        assert_same(found, outputs(model, **batch()), BF16_ROUNDING)


# Masks and inputs


def test_eager_and_sdpa_agree():
    model, masked = make_model(D2LBertForPreTraining).double(), batch()
    for inputs in (masked, {"input_ids": masked["input_ids"]}):
        model.set_attn_implementation("sdpa")
        expected = outputs(model, **inputs)
        model.set_attn_implementation("eager")
        assert_same(outputs(model, **inputs), expected, FP64_ROUNDING)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="flex attention is compiled for the CPU by g++")
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="flex attention on the CPU needs vector instructions"
)
def test_flex_attention_agrees_with_eager_in_inference():
    """Flex attention has no backward pass on the CPU."""
    inputs = batch()
    eager = make_model(D2LBertModel, "eager", hidden_size=64)
    flex = make_model(D2LBertModel, "flex_attention", hidden_size=64)
    assert_same(outputs(flex, **inputs), outputs(eager, **inputs), rounding(flex.config))


READ_ALL_POSITIONS = [(D2LBertForPreTraining, {}), (D2LBertForSequenceClassification, {"classifier_head": "matching"})]


@pytest.mark.parametrize(("model_class", "changes"), READ_ALL_POSITIONS, ids=["pretraining", "matching head"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_tokens_at_padding_do_not_change_outputs(attention: str, model_class, changes: dict):
    model, inputs = make_model(model_class, attention, **changes).double(), batch()
    real = inputs["attention_mask"].bool()
    changed = inputs | {
        "input_ids": torch.where(real, inputs["input_ids"], random_ids(seed=2)),
        "token_type_ids": torch.where(real, inputs["token_type_ids"], 1 - inputs["token_type_ids"]),
    }
    assert not torch.equal(changed["input_ids"], inputs["input_ids"])
    assert_same(outputs(model, **changed), outputs(model, **inputs), FP64_ROUNDING)


@pytest.mark.parametrize(("model_class", "changes"), READ_ALL_POSITIONS, ids=["pretraining", "matching head"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_longer_padding_does_not_change_outputs(attention: str, model_class, changes: dict):
    model, inputs = make_model(model_class, attention, **changes).double(), batch()
    longer = {name: nn.functional.pad(value, (0, 7)) for name, value in inputs.items()}
    found = outputs(model, **longer)
    if "prediction_logits" in found:
        found["prediction_logits"] = found["prediction_logits"][:, :LENGTH]
    assert_same(found, outputs(model, **inputs), FP64_ROUNDING)


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_inputs_embeds_replace_input_ids(model_class):
    model, inputs = make_model(model_class), batch()
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    without_ids = {name: value for name, value in inputs.items() if name != "input_ids"}
    with torch.no_grad():
        found, expected = dict(model(**without_ids, inputs_embeds=embeds)), dict(model(**inputs))
        assert_same(found, expected)
        for both_or_neither in ({**inputs, "inputs_embeds": embeds}, without_ids):
            with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
                model(**both_or_neither)


def test_input_longer_than_max_position_embeddings_is_an_error():
    model = make_model(D2LBertModel)
    model(random_ids(length=20))
    with pytest.raises(ValueError, match=r"21 positions.*20.*truncate"):
        model(random_ids(length=21))


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize("attention", ATTENTION)
def test_position_ids_choose_the_position_embeddings(attention: str, model_class):
    model, inputs = make_model(model_class, attention), batch()
    positions = torch.arange(LENGTH).expand(ROWS, -1)
    assert_same(outputs(model, **inputs, position_ids=positions), outputs(model, **inputs))
    shifted = make_model(model_class, attention)
    weight = shifted.base_model.embeddings.position_embeddings.weight
    with torch.no_grad():
        weight.copy_(weight.roll(-3, dims=0))  # row i holds what row i + 3 held
    found = outputs(model, **inputs, position_ids=positions + 3)
    assert_same(found, outputs(shifted, **inputs))
    assert not torch.allclose(next(iter(found.values())), next(iter(outputs(model, **inputs).values())), atol=0.01)


def test_position_ids_allow_more_tokens_than_positions():
    """A row can hold several short sequences, each from position 0."""
    model = make_model(D2LBertModel)
    positions = torch.arange(12).repeat(2)[None]
    assert model(random_ids(rows=1, length=24), position_ids=positions).last_hidden_state.shape == (1, 24, HIDDEN_SIZE)


def test_token_type_ids_default_to_zero_and_change_outputs():
    model, ids = make_model(D2LBertModel), random_ids()
    first = outputs(model, input_ids=ids, token_type_ids=torch.zeros_like(ids))
    assert_same(outputs(model, input_ids=ids), first)
    second = outputs(model, input_ids=ids, token_type_ids=torch.ones_like(ids))
    assert not torch.allclose(second["pooler_output"], first["pooler_output"], atol=0.01)


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize("attention", ATTENTION)
def test_keyword_arguments_of_transformers_are_accepted(attention: str, model_class):
    model, inputs = make_model(model_class, attention), batch()
    expected = outputs(model, **inputs)
    for name in TransformersKwargs.__annotations__:
        assert_same(outputs(model, **inputs, **{name: None}), expected)
    assert_same(outputs(model, **inputs, num_items_in_batch=torch.tensor(ROWS), max_length_q=LENGTH), expected)
    model.config.use_cache = False  # as `Trainer` sets it
    assert_same(outputs(model, **inputs), expected)


# Outputs


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_hidden_states_and_attentions_are_returned_on_request(model_class):
    model, inputs = make_model(model_class, "eager"), batch()
    assert not {"hidden_states", "attentions"} & model(**inputs).keys()
    found = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert [tuple(states.shape) for states in found.hidden_states] == [(ROWS, LENGTH, HIDDEN_SIZE)] * (LAYERS + 1)
    assert torch.equal(found.hidden_states[-1], model.base_model(**inputs).last_hidden_state)
    assert [tuple(maps.shape) for maps in found.attentions] == [(ROWS, HEADS, LENGTH, LENGTH)] * LAYERS
    hidden_keys = (inputs["attention_mask"] == 0)[:, None, None, :]
    for maps in found.attentions:
        torch.testing.assert_close(maps.sum(-1), torch.ones(ROWS, HEADS, LENGTH))
        assert not maps.masked_select(hidden_keys).any()


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize("way", ["argument", "config"])
def test_return_dict_false_returns_same_values_as_tuple(model_class, way: str):
    model, inputs = make_model(model_class), batch()
    if model_class is not D2LBertModel:
        inputs["labels"] = torch.tensor([0, 1, 2, 0]) if model_class not in LM_CLASSES else inputs["input_ids"]
    expected = model(**inputs, output_hidden_states=True).to_tuple()
    if way == "config":
        model.config.return_dict = False
        found = model(**inputs, output_hidden_states=True)
    else:
        found = model(**inputs, output_hidden_states=True, return_dict=False)
    assert type(found) is tuple and len(found) == len(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# Losses


def test_pretraining_loss_sums_losses_of_given_labels():
    model, inputs = make_model(D2LBertForPreTraining), batch()
    labels = torch.full((ROWS, LENGTH), -100)
    labels[0, 2], labels[2, 1], labels[1, 0] = 7, 8, 9
    is_next = torch.tensor([1, 0, 0, 1])
    out = model(**inputs)
    assert out.loss is None
    chosen = out.prediction_logits[[0, 2, 1], [2, 1, 0]]
    mlm = nn.functional.cross_entropy(chosen, torch.tensor([7, 8, 9]))  # label −100 is ignored
    nsp = nn.functional.cross_entropy(out.seq_relationship_logits, is_next)
    torch.testing.assert_close(model(**inputs, labels=labels).loss, mlm)
    torch.testing.assert_close(model(**inputs, next_sentence_label=is_next).loss, nsp)
    torch.testing.assert_close(model(**inputs, labels=labels, next_sentence_label=is_next).loss, mlm + nsp)


def test_masked_lm_loss_ignores_minus_100():
    model, inputs = make_model(D2LBertForMaskedLM), batch()
    labels = torch.full((ROWS, LENGTH), -100)
    labels[1, 3] = 7
    out = model(**inputs, labels=labels)
    torch.testing.assert_close(out.loss, nn.functional.cross_entropy(out.logits[1, 3], torch.tensor(7)))


INTEGERS = torch.tensor([2, 0, 1, 1])
FLOATS = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
NUMBERS = torch.tensor([0.5, -1, 2, 0])


@pytest.mark.parametrize(
    ("config", "labels", "function", "problem_type"),
    [
        ({}, INTEGERS, nn.functional.cross_entropy, "single_label_classification"),
        ({}, FLOATS, nn.functional.binary_cross_entropy_with_logits, "multi_label_classification"),
        ({"num_labels": 1}, NUMBERS, nn.functional.mse_loss, "regression"),
        ({"problem_type": "regression"}, FLOATS, nn.functional.mse_loss, "regression"),
    ],
)
def test_classification_loss_follows_labels_and_problem_type(
    config: dict, labels: torch.Tensor, function: Callable, problem_type: str
):
    model = make_model(D2LBertForSequenceClassification, **config)
    out = model(**batch(), labels=labels)
    torch.testing.assert_close(out.loss, function(out.logits.squeeze(-1), labels))
    assert model.config.problem_type == problem_type


def test_classification_label_minus_100_is_ignored_and_minus_1_is_an_error():
    model, inputs = make_model(D2LBertForSequenceClassification), batch()
    out = model(**inputs, labels=torch.tensor([2, -100, 1, -100]))
    torch.testing.assert_close(out.loss, nn.functional.cross_entropy(out.logits[[0, 2]], torch.tensor([2, 1])))
    with pytest.raises(IndexError, match="Target -1 is out of bounds"):
        model(**inputs, labels=torch.tensor([2, -1, 1, 0]))


# Classifier heads

HEAD_PARAMETERS = {
    "pooler": {"classifier.weight": (3, 16), "classifier.bias": (3,)},
    "mlp": {
        "classifier.0.weight": (12, 16),
        "classifier.0.bias": (12,),
        "classifier.2.weight": (3, 12),
        "classifier.2.bias": (3,),
    },
    "matching": {
        "classifier.dense.weight": (16, 5 * 16),
        "classifier.dense.bias": (16,),
        "classifier.output.weight": (3, 16),
        "classifier.output.bias": (3,),
    },
}
PRETRAINED_POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


@pytest.mark.parametrize("head", HEAD_PARAMETERS)
def test_classifier_head_is_new_and_other_weights_are_pretrained(head: str, tmp_path: Path):
    pretrained = make_model(D2LBertForPreTraining)
    pretrained.save_pretrained(tmp_path)
    model, info = D2LBertForSequenceClassification.from_pretrained(
        tmp_path, classifier_head=head, num_labels=3, output_loading_info=True
    )
    weights, new = model.state_dict(), HEAD_PARAMETERS[head]
    assert {name: tuple(weights[name].shape) for name in info["missing_keys"]} == new
    encoder = {name for name in pretrained.state_dict() if name.startswith("bert.")}
    assert weights.keys() - new.keys() == (encoder - PRETRAINED_POOLER if head == "mlp" else encoder)
    for name in weights.keys() - new.keys():
        assert torch.equal(weights[name], pretrained.state_dict()[name]), name


@pytest.mark.parametrize("origin", ["configuration", "pretrained folder"])
@pytest.mark.parametrize("head", HEAD_PARAMETERS)
def test_new_layers_are_initialized_as_torch_initializes_linear(head: str, origin: str, tmp_path: Path):
    sizes = {"hidden_size": 64, "classifier_hidden_size": 100, "num_labels": 80, "initializer_range": 0.02}
    model = make_model(D2LBertForSequenceClassification, classifier_head=head, **sizes)
    if origin == "pretrained folder":
        make_model(D2LBertForPreTraining, **sizes).save_pretrained(tmp_path)
        model = D2LBertForSequenceClassification.from_pretrained(tmp_path, classifier_head=head)
    linears = [part for part in model.classifier.modules() if isinstance(part, nn.Linear)]
    in_features = {"pooler": [64], "mlp": [64, 100], "matching": [5 * 64, 64]}
    assert [linear.in_features for linear in linears] == in_features[head]
    for linear in linears:
        bound = linear.in_features**-0.5
        for values, share in ((linear.weight, 0.99), (linear.bias, 0.85)):
            assert share * bound < values.abs().max() <= bound
            assert abs(values.mean().item()) < 0.2 * bound
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    encoder = model.bert.encoder.layer[0].intermediate
    assert encoder.weight.std().item() == pytest.approx(0.02, rel=0.1) and not encoder.bias.any()


def test_pooler_head_is_linear_on_pooled_output():
    model, inputs = make_model(D2LBertForSequenceClassification), batch()
    pooled = model.bert(**inputs).pooler_output
    torch.testing.assert_close(model(**inputs).logits, pooled @ model.classifier.weight.T + model.classifier.bias)


def test_mlp_head_computes_two_layers_on_first_position():
    model, inputs = make_model(D2LBertForSequenceClassification, classifier_head="mlp"), batch()
    first, second = model.classifier[0], model.classifier[2]
    inner = torch.relu(model.bert(**inputs).last_hidden_state[:, 0] @ first.weight.T + first.bias)
    torch.testing.assert_close(model(**inputs).logits, inner @ second.weight.T + second.bias)


@pytest.mark.parametrize("training", [False, True])
def test_matching_head_compares_mean_states_of_both_sentences(training: bool, monkeypatch: pytest.MonkeyPatch):
    """A constant factor replaces dropout, so that the expected output shows where dropout is applied."""
    monkeypatch.setattr(nn.functional, "dropout", lambda x, p, training, inplace=False: x * (1 + p if training else 1))
    model, inputs = make_model(D2LBertForSequenceClassification, "eager", classifier_head="matching").double(), batch()
    model.train(training)
    pooled, hidden = (model.bert(**inputs)[name] for name in ("pooler_output", "last_hidden_state"))
    features = []
    for row, length in enumerate(inputs["attention_mask"].sum(dim=1)):
        segments, states = inputs["token_type_ids"][row, :length], hidden[row, :length]
        own = [states[segments == i] for i in range(2)]  # the last row has no first sentence
        u, v = (part.mean(dim=0) if len(part) else torch.zeros(HIDDEN_SIZE).double() for part in own)
        features.append(torch.cat([pooled[row], u, v, abs(u - v), u * v]))
    dense, output = model.classifier.dense, model.classifier.output
    inner = torch.relu(torch.stack(features) @ dense.weight.T + dense.bias)
    if training:
        inner = inner * (1 + model.config.hidden_dropout_prob)
    expected = inner @ output.weight.T + output.bias
    assert_same({"logits": model(**inputs).logits}, {"logits": expected}, FP64_ROUNDING)


def test_matching_head_accepts_missing_mask_and_rejects_4d_mask():
    model, inputs = make_model(D2LBertForSequenceClassification, classifier_head="matching"), batch()
    del inputs["attention_mask"]
    expected = outputs(model, **inputs, attention_mask=torch.ones_like(inputs["input_ids"]))
    assert_same(outputs(model, **inputs), expected, FP32_ROUNDING)
    with pytest.raises(ValueError, match=r"attention_mask: the matching head needs the shape"):
        model(**inputs | {"attention_mask": torch.ones(ROWS, 1, LENGTH, LENGTH)})


def test_matching_head_without_token_type_ids_is_an_error():
    model, inputs = make_model(D2LBertForSequenceClassification, classifier_head="matching"), batch()
    del inputs["token_type_ids"]
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    for given in ({"input_ids": batch()["input_ids"]}, {"inputs_embeds": embeds}):
        with pytest.raises(ValueError, match=r"token_type_ids: missing.*tokenizer\(premise, hypothesis\)"):
            model(**inputs, **given)


# Training


def gradients_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    model.zero_grad()
    model(**batch(), labels=INTEGERS).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_gradient_checkpointing_recomputes_blocks_and_gives_same_gradients():
    model, runs = make_model(D2LBertForSequenceClassification).train(), []
    expected = gradients_of(model)
    model.gradient_checkpointing_enable()
    for layer in model.bert.encoder.layer:
        layer.attention.register_forward_hook(lambda *_: runs.append(1))
    assert_same(gradients_of(model), expected)
    assert len(runs) == 2 * LAYERS


def test_dropout_is_active_only_in_training():
    model, ids = make_model(D2LBertModel), random_ids()
    assert torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
    model.train()
    assert not torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)


def test_gradient_accumulation_of_trainer_equals_one_large_batch(tmp_path: Path):
    ids = random_ids()
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, INTEGERS, strict=True)]
    trained = []
    for steps in (1, 2):
        model = make_model(D2LBertForSequenceClassification, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        args = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=ROWS // steps,
            gradient_accumulation_steps=steps,
            learning_rate=0.1,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0.0,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(model, args, train_dataset=rows).train()
        trained.append({"parameters": nn.utils.parameters_to_vector(model.parameters())})
    assert_same(trained[1], trained[0], FP32_ROUNDING)


@pytest.mark.parametrize("model_class", LM_CLASSES)
def test_resize_token_embeddings_resizes_embedding_and_decoder(model_class, tmp_path: Path):
    model = make_model(model_class)
    before = copy.deepcopy(model.state_dict())
    model.resize_token_embeddings(VOCAB_SIZE + 6)
    model.save_pretrained(tmp_path)
    for resized in (model, model_class.from_pretrained(tmp_path).eval()):
        decoder = resized.get_output_embeddings()
        assert resized.config.vocab_size == VOCAB_SIZE + 6
        assert resized.get_input_embeddings().weight.shape == (VOCAB_SIZE + 6, HIDDEN_SIZE)
        assert decoder.weight.shape == (VOCAB_SIZE + 6, HIDDEN_SIZE) and decoder.bias.shape == (VOCAB_SIZE + 6,)
        for name, value in before.items():
            assert torch.equal(resized.state_dict()[name][: len(value)], value), name
        logits = resized(torch.full((1, 3), VOCAB_SIZE + 5), return_dict=False)[0]
        assert logits.shape == (1, 3, VOCAB_SIZE + 6)


@pytest.mark.parametrize("model_class", LM_CLASSES)
def test_decoder_is_not_tied_to_embeddings(model_class, tmp_path: Path):
    model = make_model(model_class)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(1.0)
        model.get_output_embeddings().weight.fill_(2.0)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    assert not loaded.config.tie_word_embeddings
    assert (loaded.get_input_embeddings().weight == 1).all() and (loaded.get_output_embeddings().weight == 2).all()


def test_model_compiles_into_one_graph_with_same_outputs():
    model, inputs = make_model(D2LBertForSequenceClassification), batch()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)  # a graph break is an error
    assert_same(outputs(compiled, **inputs), outputs(model, **inputs), FP32_ROUNDING)


# Offloading and quantized weights

OFFLOADED = [*((model_class, {}) for model_class in MODEL_CLASSES), READ_ALL_POSITIONS[1]]
OFFLOADED_IDS = [*(model_class.__name__ for model_class in MODEL_CLASSES), "matching head"]


def offload_to_cpu(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    return cpu_offload(model, execution_device=torch.device("cpu"))


def offload_to_disk(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    return disk_offload(model, str(folder / "offload"), execution_device=torch.device("cpu"))


def load_from_disk(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    model.save_pretrained(folder / "model")
    with init_empty_weights():
        empty = type(model)(model.config).eval()
    first, *others = (name for name, _ in empty.named_children())
    return load_checkpoint_and_dispatch(
        empty,
        str(folder / "model"),
        device_map={first: "disk", **dict.fromkeys(others, "cpu")},
        offload_folder=str(folder / "offload"),
        force_hooks=True,
    )


@pytest.mark.parametrize("offload", [offload_to_cpu, offload_to_disk, load_from_disk])
@pytest.mark.parametrize(("model_class", "changes"), OFFLOADED, ids=OFFLOADED_IDS)
def test_offloaded_model_gives_same_outputs(offload: Callable, model_class, changes: dict, tmp_path: Path):
    expected = outputs(make_model(model_class, **changes), **batch())
    model = offload(make_model(model_class, **changes), tmp_path)
    assert any(parameter.is_meta for parameter in model.parameters())
    assert_same(outputs(model, **batch()), expected)


class LinearOnlyWeight(torch.Tensor):
    """A weight that supports only `nn.functional.linear`, as quantized weights of torchao do."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if function is nn.functional.linear or function.__name__ == "__get__":
                return function(*args, **(kwargs or {}))
        raise NotImplementedError(f"{function} of a quantized weight")


@pytest.mark.parametrize("head", CLASSIFIER_HEADS)
def test_linear_layers_use_their_weights_only_in_linear(head: str):
    model, inputs = make_model(D2LBertForSequenceClassification, classifier_head=head), batch()
    expected = outputs(model, **inputs)
    for layer in [module for module in model.modules() if isinstance(module, nn.Linear)]:
        weight = layer.weight.detach().as_subclass(LinearOnlyWeight)
        del layer.weight
        layer.weight = weight
    assert_same(outputs(model, **inputs), expected)


# Configuration


@pytest.mark.parametrize("heads", [0, 3])
def test_number_of_heads_must_divide_hidden_size(heads: int):
    with pytest.raises(ValueError, match=rf"hidden_size \(16\).*num_attention_heads \({heads}\)"):
        tiny_config(num_attention_heads=heads)


def test_unknown_classifier_head_is_an_error_that_names_the_choices():
    assert HEAD_PARAMETERS.keys() == set(CLASSIFIER_HEADS)
    with pytest.raises(ValueError, match=f"'linear': is unknown; choose one of {', '.join(CLASSIFIER_HEADS)}"):
        tiny_config(classifier_head="linear")


def test_tied_embeddings_are_an_error():
    with pytest.raises(ValueError, match="tie_word_embeddings True: the decoder has its own weights"):
        tiny_config(tie_word_embeddings=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tie_word_embeddings": True}, "tie_word_embeddings True"),
        ({"classifier_head": "linear"}, "classifier_head 'linear'"),
        ({"num_attention_heads": 3}, r"num_attention_heads \(3\)"),
    ],
)
def test_from_pretrained_checks_given_configuration_values(change: dict, message: str, tmp_path: Path):
    make_model(D2LBertForSequenceClassification).save_pretrained(tmp_path)
    for auto_class in (AutoConfig, AutoModelForSequenceClassification):
        with pytest.raises(ValueError, match=message):
            auto_class.from_pretrained(tmp_path, **change)


def test_matching_head_requires_two_segments():
    with pytest.raises(ValueError, match="type_vocab_size 1: the matching head needs 2"):
        make_model(D2LBertForSequenceClassification, classifier_head="matching", type_vocab_size=1)


def test_configuration_is_unchanged_by_json_deepcopy_and_pickle(tmp_path: Path):
    config = tiny_config(
        classifier_head="mlp", layer_norm_eps=1e-7, id2label={0: "yes", 1: "no", 2: "maybe"}, pad_token_id=4
    )
    config.save_pretrained(tmp_path)
    for restored in (
        D2LBertConfig.from_pretrained(tmp_path),
        D2LBertConfig.from_dict(json.loads(config.to_json_string())),
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
    ):
        assert type(restored) is D2LBertConfig
        assert restored.to_diff_dict() == config.to_diff_dict()
        assert restored.id2label == {0: "yes", 1: "no", 2: "maybe"} and restored.num_labels == 3
        assert (restored.classifier_head, restored.layer_norm_eps, restored.pad_token_id) == ("mlp", 1e-7, 4)


# Converted and pretrained folders


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("converted")
    torch.manual_seed(0)
    source = save_d2l_checkpoint(folder / "d2l", ReferenceBERT().state_dict(), small_vocabulary())
    convert_checkpoint(source, folder / "model", num_attention_heads=2)
    return str(folder / "model")


def assert_loads_with_snli_labels(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert (model.config.id2label, model.config.label2id) == (ID2LABEL, LABEL2ID)
    assert model(random_ids(), token_type_ids=torch.zeros(ROWS, LENGTH, dtype=torch.long)).logits.shape == (ROWS, 3)
    other = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5)
    assert other.config.id2label == {number: f"LABEL_{number}" for number in range(5)}


def test_converted_folder_loads_as_classifier_with_snli_labels(converted: str):
    assert_loads_with_snli_labels(Path(converted))


def test_fill_mask_pipeline_returns_top_tokens_of_masked_lm(converted: str):
    fill = pipeline("fill-mask", converted)
    assert type(fill.model) is D2LBertForMaskedLM
    predictions = fill("w1 W2 <mask> w3", top_k=4)
    encoded = fill.tokenizer("w1 w2 <mask> w3", return_tensors="pt")
    with torch.no_grad():
        scores, ids = fill.model(**encoded).logits[0, 3].softmax(-1).topk(4)
    assert [prediction["token_str"] for prediction in predictions] == fill.tokenizer.convert_ids_to_tokens(ids.tolist())
    tolerance = rounding(fill.model.config)
    assert [prediction["score"] for prediction in predictions] == pytest.approx(scores.tolist(), rel=0, abs=tolerance)


def test_feature_extraction_pipeline_returns_last_hidden_states(converted: str):
    extract = pipeline("feature-extraction", converted)
    found = torch.tensor(extract("w1 w2 w3"))
    model = D2LBertModel.from_pretrained(converted).eval()
    expected = outputs(model, **extract.tokenizer("w1 w2 w3", return_tensors="pt"))["last_hidden_state"]
    assert found.shape == (1, 5, 16)
    assert_same({"states": found}, {"states": expected}, rounding(model.config))
