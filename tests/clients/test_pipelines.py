"""`KeyPairDataset` of `transformers` with the text-classification pipeline.

`tests/unit/test_pipeline.py` tests it with the pipeline `natural-language-inference`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, pipeline
from transformers.pipelines.pt_utils import KeyPairDataset

from tests.support.clients import PAIRS


@pytest.mark.parametrize("batch_size", [1, 2])
def test_text_classification_pipeline_reads_key_pair_dataset(
    batch_size: int, folder: Path, model: PreTrainedModel, logits: torch.Tensor
):
    premises, hypotheses = map(list, zip(*PAIRS, strict=True))
    rows = Dataset.from_dict({"premise": premises, "hypothesis": hypotheses})
    classifier = pipeline("text-classification", str(folder), trust_remote_code=True)
    found = list(classifier(KeyPairDataset(rows, "premise", "hypothesis"), batch_size=batch_size))
    scores, labels = logits.softmax(dim=-1).max(dim=-1)
    assert [result["label"] for result in found] == [model.config.id2label[label] for label in labels.tolist()]
    assert [result["score"] for result in found] == pytest.approx(scores.tolist(), abs=1e-6)
