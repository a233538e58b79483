"""A small classifier with random weights, and sentence pairs that it can read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from tests.support.checkpoints import SPECIALS

CLASSIFIER_WORDS = "a man dog is was runs sleeps sits eats not".split()


def save_random_classifier(
    folder: Path, *, max_length: int = 40, classifier_head: str = "pooler", spread: float = 0.5, seed: int = 0
) -> Path:
    """Save a classifier with large random weights, so that its predictions differ between pairs."""
    from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification
    from bert_snli.modeling.labels import ID2LABEL, LABEL2ID
    from bert_snli.tokenization import build_tokenizer

    torch.manual_seed(seed)
    config = D2LBertConfig(
        vocab_size=len(SPECIALS) + len(CLASSIFIER_WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        max_position_embeddings=max_length,
        initializer_range=spread,
        classifier_head=classifier_head,
        id2label=dict(ID2LABEL),
        label2id=dict(LABEL2ID),
    )
    model = D2LBertForSequenceClassification(config)
    *_, last = (part for part in model.classifier.modules() if isinstance(part, torch.nn.Linear))
    # Only the pooler's tanh bounds the inputs of the last layer.
    torch.nn.init.normal_(last.weight, std=2.0 if classifier_head == "pooler" else 0.5)
    model.save_pretrained(folder)
    build_tokenizer(SPECIALS + CLASSIFIER_WORDS, model_max_length=max_length).save_pretrained(folder)
    return folder


def random_pairs(count: int) -> list[tuple[str, str]]:
    """Return the same `count` pairs of 1 to 11 random words on each call."""
    random = np.random.default_rng(0)
    return [
        tuple(" ".join(random.choice(CLASSIFIER_WORDS, random.integers(1, 12))) for _ in range(2)) for _ in range(count)
    ]


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> Path:
    """Write the pairs as JSON Lines, the input format of `bert-snli predict`."""
    path.write_text("".join(json.dumps({"premise": p, "hypothesis": h}) + "\n" for p, h in pairs), encoding="utf-8")
    return path
