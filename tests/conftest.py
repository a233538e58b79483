"""Fixtures: a tiny checkpoint in the book's format, made on the spot; the real data and checkpoints where they lie."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.book import BookBERT

SHARED = Path(os.environ.get("BERT_SNLI_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SPECIALS = ["<unk>", "<pad>", "<mask>", "<cls>", "<sep>"]

os.environ["HF_HUB_OFFLINE"] = "1"  # never reach for the network
os.environ["ACCELERATE_USE_CPU"] = "1"  # the same numbers on a machine with a GPU
CACHE = tempfile.mkdtemp(prefix="bert-snli-tests-")  # what earlier runs cached would hide faults
os.environ["HF_DATASETS_CACHE"] = CACHE
os.environ["TORCHINDUCTOR_CACHE_DIR"] = CACHE  # its key leaves ATEN_CPU_CAPABILITY out
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have it ignored in what a script starts with &


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests as slow that use a slow fixture: the pushes to a local Hub take half a minute."""
    for item in items:
        if "pushed" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def shared(path: str) -> Path:
    """`path` in the folder of real data beside the repository; the test is skipped where it is not there."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs real data: {path}")
    return found


@pytest.fixture(scope="session")
def snli_zip() -> Path:
    return shared("data/snli/snli_1.0.zip")


@pytest.fixture(scope="session")
def snli_parquet() -> Path:
    return shared("data/snli-hub")


def save_book_checkpoint(folder: Path, state_dict: dict, vocabulary: list[str]) -> Path:
    """Write what the book's `pretrained` folders hold."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state_dict, folder / "pretrained.params")
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return folder


def changed(change_dict: Callable[[dict], None]) -> Callable[[Path], None]:
    """What changes the `state_dict` in a checkpoint's folder."""

    def change(folder: Path) -> None:
        state = torch.load(folder / "pretrained.params", weights_only=True)
        change_dict(state)
        torch.save(state, folder / "pretrained.params")

    return change


def tiny_vocabulary(size: int = 50) -> list[str]:
    return SPECIALS + [f"w{number}" for number in range(size - len(SPECIALS))]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated corpus in SNLI's layout."""
    from bert_snli.data.sample import write_sample

    return write_sample(tmp_path_factory.mktemp("corpus"), num_pairs={"train": 300, "dev": 60, "test": 60})


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned model that knows the pairs of `tests.serving.ASKED`."""
    from tests.serving import train_toy

    return train_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def answerer(toy: Path):
    """It, as `bert-snli serve` has it."""
    from bert_snli.serving.answering import Answerer

    return Answerer(str(toy))


@pytest.fixture(scope="session")
def address(answerer) -> Iterator[str]:
    """Where its page is served."""
    from bert_snli.serving.server import start

    port = spare_port()
    app = start(answerer, "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}"
    app.close(verbose=False)


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps its state for the life of a process; each test begins without."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def book_bert() -> BookBERT:
    torch.manual_seed(0)
    return BookBERT().eval()


@pytest.fixture
def book_checkpoint(tmp_path: Path, book_bert: BookBERT) -> Path:
    return save_book_checkpoint(tmp_path / "book", book_bert.state_dict(), tiny_vocabulary())


@pytest.fixture(scope="session")
def run_python():
    """Run `python ARGUMENTS` in the repository, as a user would; returns the finished process."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=Path(__file__).resolve().parents[1],
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


CLASSIFIER_WORDS = "a man dog is was runs sleeps sits eats not".split()


def save_random_classifier(
    folder: Path, *, max_length: int = 40, classifier_head: str = "pooler", spread: float = 0.5, seed: int = 0
) -> Path:
    """A classifier with large random weights, so that its answers differ."""
    from bert_snli.labels import ID2LABEL, LABEL2ID
    from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification
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
    torch.nn.init.normal_(last.weight, std=2.0 if classifier_head == "pooler" else 0.5)  # inputs without a bound
    model.save_pretrained(folder)
    build_tokenizer(SPECIALS + CLASSIFIER_WORDS, model_max_length=max_length).save_pretrained(folder)
    return folder


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return save_random_classifier(tmp_path / "model")


def random_pairs(count: int) -> list[tuple[str, str]]:
    random = np.random.default_rng(0)
    return [
        tuple(" ".join(random.choice(CLASSIFIER_WORDS, random.integers(1, 12))) for _ in range(2)) for _ in range(count)
    ]


def spare_port() -> int:
    """A port of this machine's choice, which another test does not get."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
