"""The hub's promise: `pipeline(…, trust_remote_code=True)` on a model folder alone gives this package's scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from bert_snli.inference import predict_pairs
from bert_snli.labels import ID2LABEL, LABEL2ID
from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification
from bert_snli.tokenization import build_tokenizer
from tests.conftest import SPECIALS
from tests.elsewhere import run_elsewhere

WORDS = "a the dog cat man woman is are n't sleeping running outside inside on in red ball . , '' `` it 's".split()
PAIRS = [
    ("A dog is running outside.", "The dog isn't sleeping."),
    ("The dog isn't sleeping.", "A dog is running outside."),  # the first pair, swapped
    ("A man, a woman.", "A zebra"),
    ('The "red ball" is in the cat', "It's on the cat, inside the dog, in the man, outside the red woman."),
    ("A cat", "A cat"),
]
SCRIPT = """
from transformers import pipeline

classify = pipeline("text-classification", arguments["folder"], trust_remote_code=True)
assert type(classify.model).__module__.startswith("transformers_modules."), type(classify.model)
inputs = [{"text": premise, "text_pair": hypothesis} for premise, hypothesis in arguments["pairs"]]
one_by_one = [classify(pair, top_k=None) for pair in inputs]
padded = classify(inputs, top_k=None, batch_size=len(inputs))
print(json.dumps({"one by one": one_by_one, "padded": padded}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small classifier with weights large enough for its answers to differ."""
    vocabulary = SPECIALS + WORDS
    config = D2LBertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=48,
        initializer_range=0.5,
        id2label=ID2LABEL,
        label2id=LABEL2ID,
        pad_token_id=vocabulary.index("<pad>"),
    )
    torch.manual_seed(0)
    D2LBertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    build_tokenizer(vocabulary, model_max_length=48).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_pipeline_without_the_package_gives_the_packages_scores(folder: Path, tmp_path: Path):
    model = D2LBertForSequenceClassification.from_pretrained(folder).eval()
    expected = predict_pairs(model, AutoTokenizer.from_pretrained(folder), PAIRS)
    assert max(abs(expected[0][label] - expected[1][label]) for label in LABEL2ID) > 0.01, "order does not matter"

    answers = run_elsewhere(SCRIPT, tmp_path, folder=str(folder), pairs=PAIRS)
    for way, results in answers.items():
        for pair, scores, ours in zip(PAIRS, results, expected, strict=True):
            found = {score["label"]: score["score"] for score in scores}
            assert found == pytest.approx(ours, abs=1e-6), (way, pair)
            assert list(found) == list(ours), (way, pair)  # the most probable first
