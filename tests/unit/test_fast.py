"""The fast forward pass, its dropout, embedding rows, precision and memory settings."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import training_flops
from bert_snli.errors import BertSnliError
from bert_snli.fast import attention, forward, machine
from bert_snli.fast.dropout import dropout
from bert_snli.fast.embedding_rows import EmbeddingRows
from bert_snli.fast.forward import FastClassifier
from bert_snli.fast.machine import choose_precision
from bert_snli.inference import TorchLogits
from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification
from bert_snli.modeling.configuration_d2l_bert import CLASSIFIER_HEADS
from bert_snli.training.setup import make_optimizer

CPU = torch.device("cpu")
VOCAB_SIZE = 60


def make_classifier(**options) -> D2LBertForSequenceClassification:
    torch.manual_seed(3)
    config = D2LBertConfig(
        **{
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_attention_heads": 2,
            "max_position_embeddings": 20,
            "initializer_range": 0.5,
            "num_labels": 3,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            **options,
        }
    )
    model = D2LBertForSequenceClassification._from_config(config, attn_implementation="eager").train()
    for name, parameter in model.named_parameters():  # biases start at 0, which would hide a missing bias
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model


def make_batch(rows: int, length: int, *, padded: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(3, length + 1, (rows,), generator=generator) if padded else torch.full((rows,), length)
    lengths[0] = length
    columns = torch.arange(length)
    return {
        "input_ids": torch.randint(0, VOCAB_SIZE // 2, (rows, length), generator=generator),
        "token_type_ids": (columns >= lengths[:, None] // 2).long(),
        "attention_mask": (columns < lengths[:, None]).long(),
    }


def logits_and_gradients(model: nn.Module, inputs: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logits = model(**inputs).logits
    (logits * torch.arange(1.0, 1 + logits.numel(), dtype=logits.dtype).view_as(logits).cos()).sum().backward()
    gradients = {name.removeprefix("model."): p.grad.clone() for name, p in model.named_parameters()}
    return {"logits": logits.detach(), **gradients}


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("head", CLASSIFIER_HEADS)
def test_fast_forward_equals_the_model_in_float64(layers, rows, padded, attention, head):
    """Compare the logits and the gradient of every parameter."""
    model = make_classifier(num_hidden_layers=layers, classifier_head=head).double()
    inputs = make_batch(rows, 11, padded=padded)
    expected = logits_and_gradients(model, inputs)
    model.config._attn_implementation = attention
    found = logits_and_gradients(FastClassifier(model), inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # The exact gradient of the key biases is zero, so they need an absolute tolerance.
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}")


def assert_same_values_and_gradients(found, expected, inputs) -> None:
    """Compare two lists of tensors and, for every input, the gradient of a weighted sum of each list."""
    gradients = []
    for tensors in (found, expected):
        loss = torch.stack([(t * torch.arange(1.0, 1 + t.numel()).view_as(t).cos()).sum() for t in tensors]).sum()
        gradients.append(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(list(found), list(expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-11)


def test_sums_of_two_rows_equal_indexing_in_float64():
    """Row 6 is used by no token, and a token may use one row twice."""
    generator = torch.Generator().manual_seed(2)
    rows_BL2 = torch.randint(0, 6, (5, 8, 2), generator=generator)
    tables = [
        torch.randn(heads, 7, 4, generator=generator, dtype=torch.float64, requires_grad=True) for heads in (1, 3)
    ]
    sums = attention.SumsOfTwoRows.apply(rows_BL2, *tables)
    expected = [table[:, rows_BL2].sum(dim=3).transpose(0, 1) for table in tables]
    assert_same_values_and_gradients(sums, expected, tables)


def test_projections_of_distinct_tokens_equal_those_of_all_tokens_in_float64():
    model, inputs = make_classifier().double(), make_batch(9, 11, padded=True)
    embeddings, layer = model.bert.embeddings, model.bert.encoder.layer[0].attention
    words, segments = embeddings.word_embeddings.weight, embeddings.token_type_embeddings.weight
    positions = embeddings.position_embeddings.weight[:11]
    ids, token_type_ids = inputs["input_ids"], inputs["token_type_ids"]
    hidden = words[ids] + segments[token_type_ids] + positions
    expected = [hidden]
    for projection, scale in ((layer.query, layer.scaling), (layer.key, 1), (layer.value, 1)):
        expected.append((projection(hidden) * scale).view(9, 11, 2, 8).transpose(1, 2))
    found_hidden, found = attention.embed_and_project(ids, token_type_ids, words, segments, positions, layer)
    weights = [*embeddings.parameters(), *layer.parameters()]
    assert_same_values_and_gradients([found_hidden, *found], expected, weights)


@pytest.mark.parametrize("padded", [False, True])
def test_attention_from_selected_positions_equals_attention_of_all_in_float64(padded: bool):
    model, inputs = make_classifier().double(), make_batch(9, 11, padded=padded)
    layer, mask = model.bert.encoder.layer[0].attention, inputs["attention_mask"][:, None, None].bool()
    hidden = torch.randn(9, 11, 16, dtype=torch.float64, requires_grad=True)
    found = attention.attend_from(layer, hidden[:, [0, 2, 5]], hidden, mask)
    expected = attention.attend(layer, attention.project(layer, hidden), mask)[:, [0, 2, 5]]
    assert_same_values_and_gradients([found], [expected], [hidden, *layer.parameters()])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("head", CLASSIFIER_HEADS)
def test_fast_forward_applies_dropout_where_the_model_does(head, layers, monkeypatch):
    """A deterministic function replaces dropout, so that the results can be compared."""
    monkeypatch.setattr(nn.functional, "dropout", lambda x, p=0.5, training=True, inplace=False: x * 1.5 + p)
    for module in (attention, forward):
        monkeypatch.setattr(module, "dropout", lambda x, probability, training: x * 1.5 + probability)
    probabilities = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
    model = make_classifier(num_hidden_layers=layers, classifier_head=head, **probabilities).double()
    inputs = make_batch(9, 11, padded=False)
    expected = logits_and_gradients(model, inputs)
    for name, value in logits_and_gradients(FastClassifier(model), inputs).items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-12, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_gradient_of_a_frequent_token_is_complete_in_bf16():
    """A running sum of ones in bf16 stops growing at 256."""
    table_NRH = torch.zeros(1, 2, 6).bfloat16().requires_grad_()
    (sums_BNLH,) = attention.SumsOfTwoRows.apply(torch.tensor([0, 1]).expand(40, 100, 2), table_NRH)
    sums_BNLH.sum().backward()
    torch.testing.assert_close(table_NRH.grad.float(), torch.full((1, 2, 6), 4000.0), rtol=2**-8, atol=0)


def test_hidden_states_between_blocks_are_bf16_only_under_autocast():
    fast, inputs = FastClassifier(make_classifier()), make_batch(17, 11, padded=False)
    assert fast.before_last_block(**inputs)[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert fast.before_last_block(**inputs)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("part", ["embeddings.word_embeddings", "encoder.layer.0.attention.value"])
def test_prediction_calls_a_layer_that_replaces_one_of_the_model(part: str):
    """Such as an adapter. The fast forward pass would read its weights and not call it."""
    model = make_classifier().eval()
    layer = model.bert.get_submodule(part)

    class Doubled(type(layer)):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(inputs)

    layer.__class__ = Doubled
    batch = make_batch(3, 7, padded=True)
    expected = model(**batch).logits
    assert torch.equal(TorchLogits(model, Accelerator(cpu=True))(batch), expected)


def test_input_longer_than_the_position_embeddings_is_refused():
    with pytest.raises(ValueError, match="21 positions, but the model has 20"):
        FastClassifier(make_classifier())(**make_batch(8, 21, padded=False))


WIDER = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "initializer_range": 0.1}


@pytest.mark.parametrize("head", CLASSIFIER_HEADS)
def test_fast_forward_in_fp32_is_as_accurate_as_the_model(head):
    model = make_classifier(**WIDER, classifier_head=head).eval()
    inputs = make_batch(64, 20, padded=True)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(**inputs).logits
        model_error = (model(**inputs).logits - exact).abs().max()
        fast_error = (FastClassifier(model)(**inputs).logits - exact).abs().max()
    assert fast_error < 4 * model_error


FLOP_ROWS = 64


def count_flops(model: nn.Module, length: int) -> int:
    """Floating-point operations of a forward and a backward pass of `FLOP_ROWS` pairs, as PyTorch counts them."""
    inputs = make_batch(FLOP_ROWS, length, padded=False)
    with FlopCounterMode(display=False) as counter:
        model(**inputs).logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("head", "share"), [("pooler", 0.5), ("mlp", 0.5), ("matching", 0.85)])
def test_fast_forward_needs_fewer_flops_than_the_model(head: str, share: float):
    """PyTorch counts the operations of one training step, with the sizes of bert.small and the lengths of SNLI."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "classifier_hidden_size": 256, "num_attention_heads": 4}
    model = make_classifier(**sizes, max_position_embeddings=64, classifier_head=head)
    assert count_flops(FastClassifier(model), length=25) < share * count_flops(model, length=25)


@pytest.mark.parametrize("length", [25, 3], ids=["snli", "short"])
@pytest.mark.parametrize("head", CLASSIFIER_HEADS)
def test_training_flops_equal_the_count_of_pytorch(head: str, length: int):
    """At length 3, the head is a large part of the model."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "classifier_hidden_size": 256, "num_attention_heads": 4}
    model = make_classifier(**sizes, max_position_embeddings=64, classifier_head=head)
    estimate = training_flops(model.config, [length] * FLOP_ROWS)
    assert count_flops(model, length) == pytest.approx(estimate, rel=0.02)


@pytest.mark.parametrize("name", ["adamw_torch_fused", "adamw_torch"])
@pytest.mark.parametrize("head", ["pooler", "matching"])
def test_training_only_the_rows_in_the_data_equals_training_the_whole_table(head, name):
    """Rows that no batch contains change too, because weight decay shrinks them."""
    full_model = make_classifier(classifier_head=head).double()
    fast_model = copy.deepcopy(full_model)
    fast = FastClassifier(fast_model)
    fast.train_rows(torch.arange(VOCAB_SIZE // 2))
    before = full_model.get_input_embeddings().weight.detach().clone()
    optimizers = [make_optimizer(model, name, 0.01, 0.1) for model in (full_model, fast)]
    fast.decay_untrained_rows(optimizers[1])
    for step in range(6):
        for model, optimizer in zip((full_model, fast), optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
            model(**make_batch(8, 7 + step, padded=True)).logits.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        if step in (2, 5):  # also during training, as before an evaluation
            fast.write_back()
            for (label, found), expected in zip(fast_model.named_parameters(), full_model.parameters(), strict=True):
                torch.testing.assert_close(
                    found, expected, rtol=1e-6, atol=1e-6, msg=lambda text, n=label: f"{n}: {text}"
                )
    after = fast_model.get_input_embeddings().weight.detach()
    assert not torch.allclose(after[-1], before[-1], rtol=1e-4)


def test_optimizer_has_states_only_for_the_trained_rows():
    fast = FastClassifier(make_classifier())
    fast.train_rows(torch.tensor([1, 5, 7]))
    shapes = [
        tuple(p.shape) for group in make_optimizer(fast, "adamw_torch", 0.1, 0.1).param_groups for p in group["params"]
    ]
    assert (3, 16) in shapes and (VOCAB_SIZE, 16) not in shapes


def test_rows_that_are_not_trained_keep_their_values():
    embedding = nn.Embedding(5, 2)
    before = embedding.weight.detach().clone()
    rows = EmbeddingRows(embedding, torch.tensor([1, 3]))
    with torch.no_grad():
        rows.weight += 1
    rows.write_back(embedding)
    after = embedding.weight.detach()
    assert torch.equal(after[[0, 2, 4]], before[[0, 2, 4]])
    assert torch.equal(after[[1, 3]], before[[1, 3]] + 1)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout_zeroes_the_given_share_and_preserves_the_mean(probability):
    torch.manual_seed(1)
    x = torch.ones(1000, 1003, requires_grad=True)  # not a multiple of four
    y = dropout(x, probability, training=True)
    share = (y == 0).float().mean().item()
    assert share == pytest.approx(probability, abs=5 * (probability * (1 - probability) / x.numel()) ** 0.5 + 2**-17)
    assert torch.allclose(y[y != 0], torch.tensor(1 / (1 - probability)), rtol=1e-4)
    # Neighbours are independent, although one random number decides for four of them.
    for step in (1, 2, 3):
        both = ((y[:, step:] == 0) & (y[:, :-step] == 0)).float().mean().item()
        assert both == pytest.approx(probability**2, abs=0.005)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_dropout_with_a_probability_near_one_drops_nearly_all_values():
    y = dropout(torch.ones(100, 1000), 0.999999, training=True)
    assert torch.isfinite(y).all() and (y == 0).float().mean() > 0.999


def test_dropout_depends_on_the_seed_and_is_disabled_in_evaluation():
    x = torch.randn(50, 7)
    torch.manual_seed(4)
    first, second = dropout(x, 0.3, True), dropout(x, 0.3, True)
    torch.manual_seed(4)
    assert torch.equal(first, dropout(x, 0.3, True))
    assert not torch.equal(first, second)
    assert dropout(x, 0.3, False) is x and dropout(x, 0.0, True) is x
    assert dropout(x.bfloat16(), 0.3, True).dtype == torch.bfloat16


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], names: list[str]) -> float:
    """Norm of the difference over all tensors, divided by the norm of `expected`."""
    error = torch.cat([(found[name] - expected[name]).flatten() for name in names]).norm()
    return float(error / torch.cat([expected[name].flatten() for name in names]).norm())


@pytest.mark.parametrize("head", ["pooler", "matching"])
def test_fast_forward_in_bf16_is_about_as_accurate_as_the_model(head: str):
    """Both round the operands and results of matrix products; the fast pass also rounds the sums between blocks.

    So the error of the fast pass is at most about twice as large. The test measures it over the whole gradient: the
    gradients of single parameters are small differences of large numbers, which bf16 does not resolve.
    """
    model = make_classifier(**WIDER, classifier_head=head)
    inputs = make_batch(32, 20, padded=True)
    expected = logits_and_gradients(copy.deepcopy(model).double(), inputs)
    gradients = [name for name in expected if name != "logits"]
    errors = {}
    for name, module in {"fast": FastClassifier(model), "plain": copy.deepcopy(model)}.items():
        module.forward = torch.autocast("cpu", torch.bfloat16)(module.forward)
        found = logits_and_gradients(module, inputs)
        errors[name] = [relative_error(found, expected, names) for names in (["logits"], gradients)]
    for fast, plain in zip(errors["fast"], errors["plain"], strict=True):
        assert fast < 2 * plain + 2**-8


@pytest.mark.parametrize(
    ("option", "launch_setting", "throughputs", "expected"),
    [
        ("auto", None, {"no": 1.0, "bf16": 9.0}, "bf16"),
        ("auto", "no", {"no": 1.0, "bf16": 9.0}, "bf16"),
        ("auto", None, {"no": 1.0, "bf16": 0.1}, "no"),
        ("auto", None, {"no": 1.0, "bf16": 1.2}, "no"),
        ("auto", "bf16", {"no": 1.0, "bf16": 0.1}, "bf16"),
        ("no", "bf16", {"no": 1.0, "bf16": 9.0}, "no"),
        ("bf16", None, {"no": 1.0, "bf16": 0.1}, "bf16"),
    ],
)
def test_precision_is_the_chosen_one_or_the_faster_one(monkeypatch, option, launch_setting, throughputs, expected):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launch_setting:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launch_setting)
    by_dtype = {machine.PRECISIONS[name]: throughput for name, throughput in throughputs.items()}
    monkeypatch.setattr(machine, "measure_matmul_throughput", lambda device, dtype: by_dtype[dtype])
    chosen = choose_precision(option, CPU)
    assert (chosen.name, chosen.matmul_throughput) == (expected, throughputs[expected])


def test_unsupported_precision_of_accelerate_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(BertSnliError, match="fp8: is unknown; choose from no, bf16, fp16"):
        choose_precision("auto", CPU)


def test_auto_precision_is_that_of_an_existing_accelerator():
    """A process has one precision; a notebook may predict before it trains."""
    Accelerator(cpu=True, mixed_precision="bf16")
    assert choose_precision("auto", CPU).name == "bf16"


MEMORY_SCRIPT = """
import resource, torch
from bert_snli.fast.machine import keep_freed_memory

def count_page_faults():
    torch.ones(2**23)  # 32 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**23)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(count_page_faults())
keep_freed_memory()
print(count_page_faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_keep_freed_memory_avoids_page_faults(run_python):
    done = run_python("-c", MEMORY_SCRIPT)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    if before < 20 * 16:
        pytest.skip("this C library keeps freed memory by default")
    assert after < before / 5
