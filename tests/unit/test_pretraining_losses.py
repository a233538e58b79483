"""The losses of pretraining, against PyTorch and against the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from bert_snli.data.batching import MicroBatch
from bert_snli.fast.forward import FastPreTraining
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
from bert_snli.pretrain import evaluate
from tests.support.pretraining import masked_pairs


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
    metrics, _ = evaluate(model, pairs, 7, Accelerator(cpu=True))
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
