"""The fast path of training and prediction: the same numbers as the model, and what each part claims."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bert_snli.errors import BertSnliError
from bert_snli.fast import forward, machine
from bert_snli.fast.dropout import dropped
from bert_snli.fast.forward import FastClassifier
from bert_snli.fast.machine import choose_precision, training_flops
from bert_snli.fast.word_rows import WordRows
from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification
from bert_snli.modeling.configuration_d2l_bert import CLASSIFIER_HEADS
from bert_snli.training.optimisation import make_optimizer

CPU = torch.device("cpu")
WORDS = 60


def classifier(**options) -> D2LBertForSequenceClassification:
    torch.manual_seed(3)
    config = D2LBertConfig(
        **{
            "vocab_size": WORDS,
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
    for name, parameter in model.named_parameters():  # biases start at 0, and would hide being left out
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model


def batch(rows: int, length: int, *, padded: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(3, length + 1, (rows,), generator=generator) if padded else torch.full((rows,), length)
    lengths[0] = length
    columns = torch.arange(length)
    return {
        "input_ids": torch.randint(0, WORDS // 2, (rows, length), generator=generator),
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
def test_the_fast_forward_is_the_models_function(layers, rows, padded, attention, head):
    """In float64, where only a mistake can show: logits, and the gradient of every parameter."""
    model = classifier(num_hidden_layers=layers, classifier_head=head).double()
    inputs = batch(rows, 11, padded=padded)
    expected = logits_and_gradients(model, inputs)
    model.config._attn_implementation = attention
    ours = logits_and_gradients(FastClassifier(model), inputs)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        # Keys' biases have no gradient but what rounding makes.
        torch.testing.assert_close(ours[name], value, rtol=1e-12, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("head", CLASSIFIER_HEADS)
def test_dropout_stands_where_the_model_has_it(head, layers, monkeypatch):
    """With something in its place that can be compared: neither random nor nothing."""
    monkeypatch.setattr(nn.functional, "dropout", lambda x, p=0.5, training=True, inplace=False: x * 1.5 + p)
    monkeypatch.setattr(forward, "dropped", lambda x, rate, training: x * 1.5 + rate)
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
    model = classifier(num_hidden_layers=layers, classifier_head=head, **rates).double()
    inputs = batch(9, 11, padded=False)
    expected = logits_and_gradients(model, inputs)
    for name, value in logits_and_gradients(FastClassifier(model), inputs).items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-12, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_word_that_comes_often_gets_all_of_its_gradient_in_bf16():
    """A running sum in bf16 would stand still at 256 times one."""
    embedded_SD, projected_S3D = torch.zeros(2, 2).requires_grad_(), torch.zeros(2, 6).bfloat16().requires_grad_()
    sources_BL2 = torch.tensor([0, 1]).expand(40, 100, 2)
    hidden, *heads = forward.SourceSums.apply(embedded_SD, projected_S3D, sources_BL2, 1)
    torch.stack([part.sum() for part in (hidden, *heads)]).sum().backward()
    torch.testing.assert_close(embedded_SD.grad, torch.full((2, 2), 4000.0))
    torch.testing.assert_close(projected_S3D.grad.float(), torch.full((2, 6), 4000.0), rtol=2**-8, atol=0)


def test_between_blocks_it_is_bf16_under_autocast_alone():
    fast, inputs = FastClassifier(classifier()), batch(17, 11, padded=False)
    assert fast.before_last(**inputs)[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert fast.before_last(**inputs)[0].dtype == torch.bfloat16


def test_more_positions_than_the_model_has_are_refused():
    with pytest.raises(ValueError, match="21 positions, but the model has 20"):
        FastClassifier(classifier())(**batch(8, 21, padded=False))


WIDER = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "initializer_range": 0.1}


@pytest.mark.parametrize("head", CLASSIFIER_HEADS)
def test_in_fp32_the_fast_forward_is_as_near_to_float64_as_the_model(head):
    model = classifier(**WIDER, classifier_head=head).eval()
    inputs = batch(64, 20, padded=True)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(**inputs).logits
        theirs = (model(**inputs).logits - exact).abs().max()
        ours = (FastClassifier(model)(**inputs).logits - exact).abs().max()
    assert ours < 4 * theirs


@pytest.mark.parametrize(("head", "share"), [("pooler", 0.5), ("mlp", 0.5), ("matching", 0.85)])
def test_the_fast_forward_takes_half_of_the_products_or_so(head: str, share: float):
    """bert.small's shape and SNLI's lengths; the count is PyTorch's own, of one training step."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "classifier_hidden_size": 256, "num_attention_heads": 4}
    model = classifier(**sizes, max_position_embeddings=64, classifier_head=head)
    inputs = batch(256, 25, padded=False)

    def flops(module: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter:
            module(**inputs).logits.sum().backward()
        return counter.get_total_flops()

    whole = flops(model)
    # Each product of two linear maps on the way forward takes two on the way back; PyTorch counts them as they come.
    assert whole == pytest.approx(training_flops(model.config, [25] * 256), rel=0.02)
    assert flops(FastClassifier(model)) < share * whole
    inputs = batch(256, 3, padded=False)  # where a head is no small part
    assert flops(model) == pytest.approx(training_flops(model.config, [3] * 256), rel=0.02)


@pytest.mark.parametrize("name", ["adamw_torch_fused", "adamw_torch"])
@pytest.mark.parametrize("head", ["pooler", "matching"])
def test_training_the_words_in_use_is_training_the_whole_table(head, name):
    """Also for rows that no batch holds: weight decay shrinks them all the same."""
    whole = classifier(classifier_head=head).double()
    parted = copy.deepcopy(whole)
    fast = FastClassifier(parted)
    fast.train_rows(torch.arange(WORDS // 2))
    before = whole.get_input_embeddings().weight.detach().clone()
    optimizers = [make_optimizer(model, name, 0.01, 0.1) for model in (whole, fast)]
    fast.follow(optimizers[1])
    for step in range(6):
        for model, optimizer in zip((whole, fast), optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
            model(**batch(8, 7 + step, padded=True)).logits.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        if step in (2, 5):  # also in between, as an evaluation does
            fast.write_back()
            for (label, ours), theirs in zip(parted.named_parameters(), whole.parameters(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=lambda text, n=label: f"{n}: {text}")
    after = parted.get_input_embeddings().weight.detach()
    assert not torch.allclose(after[-1], before[-1], rtol=1e-4)


def test_the_optimizer_holds_states_of_the_words_in_use_only():
    fast = FastClassifier(classifier())
    fast.train_rows(torch.tensor([1, 5, 7]))
    shapes = [
        tuple(p.shape) for group in make_optimizer(fast, "adamw_torch", 0.1, 0.1).param_groups for p in group["params"]
    ]
    assert (3, 16) in shapes and (WORDS, 16) not in shapes


def test_words_that_are_not_in_use_keep_their_rows():
    embedding = nn.Embedding(5, 2)
    before = embedding.weight.detach().clone()
    rows = WordRows(embedding, torch.tensor([1, 3]))
    with torch.no_grad():
        rows.weight += 1
    rows.write_back(embedding)
    after = embedding.weight.detach()
    assert torch.equal(after[[0, 2, 4]], before[[0, 2, 4]])
    assert torch.equal(after[[1, 3]], before[[1, 3]] + 1)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate):
    torch.manual_seed(1)
    x = torch.ones(1000, 1003, requires_grad=True)  # no multiple of four
    y = dropped(x, rate, training=True)
    share = (y == 0).float().mean().item()
    assert share == pytest.approx(rate, abs=5 * (rate * (1 - rate) / x.numel()) ** 0.5 + 2**-17)
    assert torch.allclose(y[y != 0], torch.tensor(1 / (1 - rate)), rtol=1e-4)
    # Neighbours are independent: the four decisions of a draw too.
    for step in (1, 2, 3):
        both = ((y[:, step:] == 0) & (y[:, :-step] == 0)).float().mean().item()
        assert both == pytest.approx(rate**2, abs=0.005)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_a_rate_next_to_one_drops_nearly_all():
    y = dropped(torch.ones(100, 1000), 0.999999, training=True)
    assert torch.isfinite(y).all() and (y == 0).float().mean() > 0.999


def test_dropout_follows_the_seed_and_is_nothing_in_evaluation():
    x = torch.randn(50, 7)
    torch.manual_seed(4)
    first, second = dropped(x, 0.3, True), dropped(x, 0.3, True)
    torch.manual_seed(4)
    assert torch.equal(first, dropped(x, 0.3, True))
    assert not torch.equal(first, second)
    assert dropped(x, 0.3, False) is x and dropped(x, 0.0, True) is x
    assert dropped(x.bfloat16(), 0.3, True).dtype == torch.bfloat16


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], names: list[str]) -> float:
    """Norm of the difference over all tensors, divided by the norm of `expected`."""
    error = torch.cat([(found[name] - expected[name]).flatten() for name in names]).norm()
    return float(error / torch.cat([expected[name].flatten() for name in names]).norm())


@pytest.mark.parametrize("head", ["pooler", "matching"])
def test_fast_forward_in_bf16_is_as_near_to_float64_as_the_model(head: str):
    """Both round operands and results of all products; the fast one also rounds the sums between blocks.

    So its error is at most about twice as large. It is taken over the whole gradient: that of single parameters is a
    difference of nearly equal numbers, of which bf16 leaves nothing.
    """
    model = classifier(**WIDER, classifier_head=head)
    inputs = batch(32, 20, padded=True)
    expected = logits_and_gradients(copy.deepcopy(model).double(), inputs)
    gradients = [name for name in expected if name != "logits"]
    errors = {}
    for which, module in {"fast": FastClassifier(model), "plain": copy.deepcopy(model)}.items():
        module.forward = torch.autocast("cpu", torch.bfloat16)(module.forward)
        found = logits_and_gradients(module, inputs)
        errors[which] = [relative_error(found, expected, names) for names in (["logits"], gradients)]
    for fast, plain in zip(errors["fast"], errors["plain"], strict=True):
        assert fast < 2 * plain + 2**-8


@pytest.mark.parametrize(
    "told, launched, rates, expected",
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
def test_the_precision_is_as_told_or_the_faster_one(monkeypatch, told, launched, rates, expected):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    by_dtype = {machine.PRECISIONS[name]: rate for name, rate in rates.items()}
    monkeypatch.setattr(machine, "matrix_rate", lambda device, dtype: by_dtype[dtype])
    chosen = choose_precision(told, CPU)
    assert (chosen.name, chosen.rate) == (expected, rates[expected])


def test_a_precision_that_is_not_ours_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(BertSnliError, match="fp8: choose from no, bf16, fp16"):
        choose_precision("auto", CPU)


def test_auto_is_what_an_earlier_accelerator_has():
    """There is one precision in a process: a notebook may predict before it trains."""
    Accelerator(cpu=True, mixed_precision="bf16")
    assert choose_precision("auto", CPU).name == "bf16"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_is_kept(run_python):
    """Counted in page faults: blocks of 32 MiB, over and over."""
    code = (
        "import resource, sys, torch\n"
        "from bert_snli.fast.machine import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': keep_freed_memory()\n"
        "torch.ones(2**23)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): torch.ones(2**23)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    faults = {how: int(run_python("-c", code, how).stdout) for how in ("keep", "leave")}
    if faults["leave"] < 20 * 16:
        pytest.skip("this C library keeps memory by itself")
    assert faults["keep"] < faults["leave"] / 5
