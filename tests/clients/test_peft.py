"""LoRA with peft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, pipeline

from bert_snli import Predictor
from tests.support.clients import PAIRS, assert_same_logits, compute_logits, import_or_skip

peft = import_or_skip("peft")


def train(model: torch.nn.Module, inputs: dict[str, torch.Tensor], labels: torch.Tensor, steps: int) -> list[float]:
    """Train the parameters that are not frozen; return the loss of each step."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("target_modules", ["all-linear", ["query", "value"]])
def test_lora_adapter_trains_loads_and_merges(
    target_modules: str | list[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    inputs: dict[str, torch.Tensor],
    logits: torch.Tensor,
    tmp_path: Path,
):
    labels = (logits.argmax(dim=-1) + 1) % 3  # wrong ones: the loss begins high
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=target_modules))
    losses = train(adapted, inputs, labels, steps=20)
    assert losses[-1] < 0.1 * losses[0]
    # These begin as 0, so a layer whose adapter the forward pass ignores would keep 0.
    assert all(parameter.any() for name, parameter in adapted.named_parameters() if "lora_B" in name)
    expected = compute_logits(adapted, inputs)
    with adapted.disable_adapter():
        assert_same_logits(compute_logits(adapted, inputs), logits, model.config)  # the base model is frozen

    adapted.save_pretrained(tmp_path / "adapter")
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    assert_same_logits(compute_logits(loaded, inputs), expected, model.config)

    probabilities = expected.softmax(dim=-1).tolist()
    for scores, row in zip(Predictor(loaded.base_model.model, tokenizer)(PAIRS), probabilities, strict=True):
        assert sorted(scores.values()) == pytest.approx(sorted(row), abs=1e-5)
    merged = loaded.merge_and_unload()
    assert_same_logits(compute_logits(merged, inputs), expected, model.config)
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    nli = pipeline("natural-language-inference", str(tmp_path / "merged"), trust_remote_code=True)
    assert [result["label"] for result in nli(PAIRS)] == [model.config.id2label[label] for label in labels.tolist()]


def test_lora_without_target_modules_is_an_error_of_peft(model: PreTrainedModel):
    with pytest.raises(ValueError, match="specify `target_modules`"):
        peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS"))
