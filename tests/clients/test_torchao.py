"""int8 weights with torchao."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TorchAoConfig, pipeline

from bert_snli import Predictor
from tests.support.clients import PAIRS, compute_logits, import_or_skip, load_model

import_or_skip("torchao")

from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_  # noqa: E402
from torchao.utils import TorchAOBaseTensor  # noqa: E402

CONFIGS = [Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig]


def assert_is_quantized(model: torch.nn.Module) -> None:
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert linear and all(isinstance(module.weight, TorchAOBaseTensor) for module in linear)


@pytest.mark.parametrize("config", CONFIGS)
def test_quantized_model_has_nearly_the_same_logits_and_can_be_saved(
    config: type,
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    inputs: dict[str, torch.Tensor],
    logits: torch.Tensor,
    tmp_path: Path,
):
    quantize_(model, config())
    loaded = load_model(folder, quantization_config=TorchAoConfig(config()))
    for quantized in (model, loaded):
        assert_is_quantized(quantized)
        # int8 rounds a weight by up to 0.4 % of the largest weight in its row, and the errors of 13 layers add up.
        error = (compute_logits(quantized, inputs) - logits).abs().max() / logits.abs().max()
        assert 0 < error < 0.05

    probabilities = compute_logits(loaded, inputs).softmax(dim=-1).tolist()
    for scores, row in zip(Predictor(loaded, tokenizer)(PAIRS), probabilities, strict=True):
        assert sorted(scores.values()) == pytest.approx(sorted(row), abs=0.02)  # batches are scaled in int8

    loaded.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    nli = pipeline("natural-language-inference", str(tmp_path), trust_remote_code=True)
    assert_is_quantized(nli.model)
    assert torch.equal(compute_logits(nli.model, inputs), compute_logits(loaded, inputs))
    labels = [model.config.id2label[label] for label in logits.argmax(dim=-1).tolist()]
    assert [result["label"] for result in nli(PAIRS)] == labels
