"""The losses of pretraining, against PyTorch and against the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from bert_snli.data.batching import MicroBatch
from bert_snli.fast import cross_entropy
from bert_snli.fast.cross_entropy import linear_cross_entropy
from bert_snli.fast.forward import FastPreTraining
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
from bert_snli.pretrain import evaluate
from tests.support.pretraining import masked_pairs


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_chunked_cross_entropy_equals_that_of_pytorch(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_SIZE_CPU", 7)
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 50).double()
    hidden = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(50, (rows,))
    labels[::3] = -100
    logits = linear(hidden)
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    expected = torch.autograd.grad(3 * plain, [hidden, *linear.parameters()])
    loss, right = linear_cross_entropy(hidden, linear, labels)
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=1e-12)
    assert right == (logits.argmax(dim=-1) == labels).sum()
    for ours, theirs in zip(torch.autograd.grad(3 * loss, [hidden, *linear.parameters()]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_chunked_cross_entropy_in_half_precision_is_close_to_fp32(kind: torch.dtype, tolerance: float):
    """With more tokens than fp16 can count, new weights, and an ignored row."""
    torch.manual_seed(0)
    linear, hidden = torch.nn.Linear(16, 70_000), torch.randn(12, 16, requires_grad=True)
    labels = torch.randint(70_000, (12,)).index_fill(0, torch.tensor([5]), -100)
    inputs = [hidden, linear.weight, linear.bias]
    plain = torch.nn.functional.cross_entropy(linear(hidden), labels, reduction="sum")
    with torch.autocast("cpu", kind):
        loss, _ = linear_cross_entropy(hidden, linear, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=1e-3, atol=0)
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(plain, inputs), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_small_gradients_in_fp16_are_not_rounded_to_zero_before_loss_scaling():
    """For all but one of 70,000 tokens the gradient of the logit is 1e-9, which fp16 rounds to 0."""
    linear, hidden = torch.nn.Linear(1, 70_000), torch.ones(1, 1, requires_grad=True)
    with torch.no_grad():
        linear.weight.fill_(1.0)
        linear.bias.zero_()[0] = 20.0
    label = torch.tensor([0])
    plain = torch.nn.functional.cross_entropy(linear(hidden), label, reduction="sum")
    (expected,) = torch.autograd.grad(plain, linear.weight)
    with torch.autocast("cpu", torch.float16):
        loss, _ = linear_cross_entropy(hidden, linear, label)
    (found,) = torch.autograd.grad(loss, linear.weight)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)


def test_loss_of_a_token_with_probability_zero_is_finite():
    """A probability of e^-200 is 0 in fp32; its logarithm is finite."""
    linear, hidden = torch.nn.Linear(1, 3), torch.tensor([[200.0]], requires_grad=True)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0], [0.0], [-1.0]]))
        linear.bias.zero_()
    loss, right = linear_cross_entropy(hidden, linear, torch.tensor([1]))
    assert loss.item() == pytest.approx(200) and right == 0
    (gradient,) = torch.autograd.grad(loss, [hidden])
    assert gradient.item() == pytest.approx(1)


def test_evaluation_equals_the_loss_of_the_model_row_by_row(wiki: Path, wiki_vocabulary: list[str]):
    """The evaluation uses batches and turns dropout off."""
    torch.manual_seed(0)
    config = D2LBertConfig(
        vocab_size=len(wiki_vocabulary),
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        hidden_dropout_prob=0.5,
    )
    model, pairs = D2LBertForPreTraining(config).train(), masked_pairs(wiki, wiki_vocabulary)
    metrics = evaluate(model, pairs, 7, Accelerator(cpu=True)).metrics
    model.eval()
    mlm, right, nsp = [], [], []
    for row in range(len(pairs)):
        batch = pairs[MicroBatch([row], has_labels=True)]
        out = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
        logits, words = out.prediction_logits[0, batch["predicted"][0]], batch["labels"][0]
        mlm += torch.nn.functional.cross_entropy(logits, words, reduction="none").tolist()
        right += (logits.argmax(-1) == words).tolist()
        nsp.append(torch.nn.functional.cross_entropy(out.seq_relationship_logits, batch["next_sentence_label"]).item())
    expected = {"mlm_loss": np.mean(mlm), "perplexity": np.exp(np.mean(mlm)), "nsp_loss": np.mean(nsp)}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert metrics["mlm_accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("rows", [[5], [3, 9, 11, 40, 41, 42]])
def test_fast_losses_and_gradients_equal_those_of_the_model(
    attention: str, layers: int, rows: list[int], wiki: Path, wiki_vocabulary: list[str]
):
    """`D2LBertForPreTraining` computes the logits of all positions."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "initializer_range": 0.3}
    config = D2LBertConfig(
        vocab_size=len(wiki_vocabulary), num_hidden_layers=layers, max_position_embeddings=40, **sizes
    )
    model = D2LBertForPreTraining(config).double().eval()
    model.set_attn_implementation(attention)
    batch = masked_pairs(wiki, wiki_vocabulary)[MicroBatch(rows, has_labels=True)]
    everywhere = torch.full_like(batch["input_ids"], -100)
    for row, (columns, words) in enumerate(zip(batch["predicted"], batch["labels"], strict=True)):
        everywhere[row, columns[words >= 0]] = words[words >= 0]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    plain = model(**inputs, labels=everywhere, next_sentence_label=batch["next_sentence_label"])
    expected = torch.autograd.grad(plain.loss, list(model.parameters()))
    mlm_loss, nsp_loss, right = FastPreTraining(model)(**batch)
    loss = mlm_loss / (everywhere >= 0).sum() + nsp_loss / len(rows)
    torch.testing.assert_close(loss, plain.loss, rtol=1e-11, atol=1e-11)
    assert right[0] == (plain.prediction_logits.argmax(-1) == everywhere).sum()
    assert right[1] == (plain.seq_relationship_logits.argmax(-1) == batch["next_sentence_label"]).sum()
    for ours, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
