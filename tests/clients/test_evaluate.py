"""`evaluate.evaluator("text-classification")` with pairs."""

from __future__ import annotations

from pathlib import Path

import evaluate
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, pipeline

from bert_snli.evaluation.metrics import ClassificationMetrics
from tests.support.clients import PAIRS

COLUMNS = {"input_column": "premise", "second_input_column": "hypothesis", "label_column": "label"}


def make_data(labels: list) -> Dataset:
    premises, hypotheses = map(list, zip(*PAIRS, strict=True))
    return Dataset.from_dict({"premise": premises, "hypothesis": hypotheses, "label": labels})


def test_evaluator_gives_the_accuracy_of_the_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, logits: torch.Tensor
):
    golds = [model.config.id2label[label] for label in logits.argmax(dim=-1).tolist()]
    golds[0] = next(label for label in model.config.label2id if label != golds[0])
    result = evaluate.evaluator("text-classification").compute(
        model, make_data(golds), metric=ClassificationMetrics(), tokenizer=tokenizer, **COLUMNS
    )
    assert result["accuracy"] == pytest.approx(1 - 1 / len(PAIRS))


def test_evaluator_accepts_no_pipeline_object_of_transformers_5(folder: Path):
    nli = pipeline("natural-language-inference", str(folder), trust_remote_code=True)
    data = make_data(["neutral"] * len(PAIRS))
    with pytest.raises(AttributeError, match="TFPreTrainedModel"):
        evaluate.evaluator("text-classification").compute(nli, data, metric=ClassificationMetrics(), **COLUMNS)
