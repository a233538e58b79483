"""Explanations of predictions with captum and shap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, pipeline

from tests.support.clients import PAIRS, import_or_skip


def test_integrated_gradients_of_captum_add_up_to_the_difference_of_the_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
):
    attribution = import_or_skip("captum.attr")

    def compute(*tensors: torch.Tensor) -> torch.Tensor:
        return model(**dict(zip(("input_ids", "token_type_ids", "attention_mask"), tensors, strict=True))).logits

    ids, *others = tokenizer(*PAIRS[1], return_tensors="pt").values()
    is_special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    baseline = torch.where(is_special, ids, tokenizer.pad_token_id)
    gradients = attribution.LayerIntegratedGradients(compute, model.bert.embeddings.word_embeddings)
    label = compute(ids, *others).argmax().item()
    attributions = gradients.attribute(ids, baseline, target=label, additional_forward_args=tuple(others), n_steps=200)
    with torch.no_grad():
        difference = (compute(ids, *others) - compute(baseline, *others))[0, label].item()
    assert attributions.shape == (*ids.shape, model.config.hidden_size)
    assert abs(difference) > 0.5
    assert attributions.sum().item() == pytest.approx(difference, rel=0.01)  # 200 steps approximate the integral
    assert not attributions[is_special].any()


def test_shap_values_of_the_hypothesis_add_up_to_the_probabilities(folder: Path, model: PreTrainedModel):
    shap = import_or_skip("shap")
    nli = pipeline("natural-language-inference", str(folder), trust_remote_code=True)
    premise, hypothesis = PAIRS[1]
    labels = list(model.config.id2label.values())

    def compute(hypotheses: np.ndarray) -> np.ndarray:
        predictions = nli([(premise, str(text)) for text in hypotheses], top_k=None)
        scores = [{entry["label"]: entry["score"] for entry in prediction} for prediction in predictions]
        return np.array([[row[label] for label in labels] for row in scores])

    explain = shap.Explainer(compute, shap.maskers.Text(nli.tokenizer), output_names=labels)
    explanation = explain([hypothesis], max_evals=40, silent=True)
    assert "".join(explanation.data[0]) == hypothesis
    assert np.abs(explanation.values[0]).max() > 0.01
    total = explanation.base_values[0] + explanation.values[0].sum(axis=0)
    np.testing.assert_allclose(total, compute(np.array([hypothesis]))[0], atol=1e-6)


def test_shap_explains_one_text_with_the_text_classification_pipeline(folder: Path):
    shap = import_or_skip("shap")
    classifier = pipeline("text-classification", str(folder), trust_remote_code=True, top_k=None)
    text = PAIRS[1][0]
    explanation = shap.Explainer(classifier)([text], max_evals=40, silent=True)
    total = dict(
        zip(explanation.output_names, explanation.base_values[0] + explanation.values[0].sum(axis=0), strict=True)
    )
    expected = {entry["label"]: entry["score"] for entry in classifier([text])[0]}
    assert total == pytest.approx(expected, abs=1e-6)
