"""A prediction depends on the weights and the pair only: not on earlier calls, other pairs of a call, or threads."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from bert_snli.inference import load_classifier, load_tokenizer
from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification
from bert_snli.modeling.labels import ID2LABEL, LABEL2ID
from bert_snli.prediction import Pair, Predictor
from bert_snli.tokenization import build_tokenizer
from tests.support.checkpoints import SPECIALS

NUM_PAIRS, LARGEST_CALL, NUM_THREADS, CALLS_PER_THREAD = 1200, 600, 4, 30
MIN_TOKENS, MAX_TOKENS = 3, 128  # includes the three special tokens; a side may be empty
TOPICS, WORDS_PER_TOPIC = 4, 400  # each topic shares half of its words with the next one
# Of probabilities: fp32 rounding gives about 1e-6 here; a wrong token or position changes them by more than 1e-3.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with large random weights, so that predictions differ."""
    folder = tmp_path_factory.mktemp("classifier")
    words = [f"w{number}" for number in range(WORDS_PER_TOPIC * (TOPICS + 1) // 2)]
    torch.manual_seed(0)
    config = D2LBertConfig(
        vocab_size=len(SPECIALS) + len(words),
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=0.4,
        classifier_head="matching",
        id2label=dict(ID2LABEL),
        label2id=dict(LABEL2ID),
    )
    D2LBertForSequenceClassification(config).save_pretrained(folder)
    build_tokenizer(SPECIALS + words, model_max_length=MAX_TOKENS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Pairs of all lengths; neighbours are about the same topic."""
    random = np.random.default_rng(0)
    made = []
    for number in range(NUM_PAIRS):
        first_word = number * TOPICS // NUM_PAIRS * WORDS_PER_TOPIC // 2
        total = random.integers(MIN_TOKENS, MAX_TOKENS + 1) - 3
        split = random.integers(total + 1)
        words = [f"w{first_word + word}" for word in random.integers(WORDS_PER_TOPIC, size=total)]
        made.append((" ".join(words[:split]), " ".join(words[split:])))
    return made


@pytest.fixture(scope="module")
def expected(folder: Path, pairs: list[Pair]) -> np.ndarray:
    """Probabilities (pairs, labels) by the model's own forward pass, one pair at a time, without padding."""
    model, tokenizer = load_classifier(str(folder)), load_tokenizer(str(folder))
    with torch.no_grad():
        # Lists, because the tokenizer ignores an empty second text that is a string.
        logits = [
            model(**tokenizer([premise], [hypothesis], return_tensors="pt")).logits[0] for premise, hypothesis in pairs
        ]
    return torch.stack(logits).softmax(dim=-1).numpy()


def random_calls(seed: int) -> list[np.ndarray]:
    """Row numbers of each call: neighbours, so that calls use different tokens; small calls as often as large ones."""
    random = np.random.default_rng((1, seed))
    sizes = np.exp(random.uniform(0, np.log(LARGEST_CALL), CALLS_PER_THREAD)).astype(int)
    return [random.permutation(size) + random.integers(NUM_PAIRS - size + 1) for size in sizes]


def call_all(predictor: Predictor, pairs: list[Pair], calls: list[np.ndarray]) -> list[np.ndarray]:
    """The probabilities (pairs of the call, labels) of each call."""
    labels = list(LABEL2ID)
    return [
        np.array([[scores[label] for label in labels] for scores in predictor([pairs[row] for row in rows])])
        for rows in calls
    ]


def assert_equal_to_expected(found: list[np.ndarray], calls: list[np.ndarray], expected: np.ndarray) -> None:
    for probabilities, rows in zip(found, calls, strict=True):
        np.testing.assert_allclose(probabilities, expected[rows], rtol=0, atol=TOLERANCE)


def test_predictions_do_not_depend_on_earlier_calls(folder: Path, pairs: list[Pair], expected: np.ndarray):
    predictor, calls = Predictor(load_classifier(str(folder)), load_tokenizer(str(folder))), random_calls(0)
    assert_equal_to_expected(call_all(predictor, pairs, calls), calls, expected)


def test_predictions_do_not_depend_on_concurrent_threads(folder: Path, pairs: list[Pair], expected: np.ndarray):
    predictor = Predictor(load_classifier(str(folder)), load_tokenizer(str(folder)))
    calls = [random_calls(1 + number) for number in range(NUM_THREADS)]
    found: dict[int, list[np.ndarray]] = {}

    def predict_calls(number: int) -> None:
        found[number] = call_all(predictor, pairs, calls[number])

    threads = [threading.Thread(target=predict_calls, args=(number,)) for number in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(NUM_THREADS):
        assert_equal_to_expected(found[number], calls[number], expected)


def test_predictions_of_a_stream_do_not_depend_on_earlier_chunks(
    folder: Path, pairs: list[Pair], expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bert_snli.prediction.CHUNK_SIZE", 250)  # the last chunk is shorter and has other tokens
    predictor = Predictor(load_classifier(str(folder)), load_tokenizer(str(folder)), batch_size=64)
    labels, found = list(LABEL2ID), []
    for _, predictions in predictor.stream(pairs):
        found.extend([scores[label] for label in labels] for scores in predictions)
    assert_equal_to_expected([np.array(found)], [np.arange(NUM_PAIRS)], expected)
