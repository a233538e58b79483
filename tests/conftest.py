"""Fixtures: a tiny checkpoint in the book's format, made on the spot; the real data and checkpoints where they lie."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.book import BookBERT

SHARED = Path(os.environ.get("BERT_SNLI_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SPECIALS = ["<unk>", "<pad>", "<mask>", "<cls>", "<sep>"]

# Never reach for the network: the hub's client fails at once instead of retrying.
os.environ["HF_HUB_OFFLINE"] = "1"


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


def tiny_vocabulary(size: int = 50) -> list[str]:
    return SPECIALS + [f"w{number}" for number in range(size - len(SPECIALS))]


@pytest.fixture
def book_bert() -> BookBERT:
    torch.manual_seed(0)
    return BookBERT().eval()


@pytest.fixture
def book_checkpoint(tmp_path: Path, book_bert: BookBERT) -> Path:
    return save_book_checkpoint(tmp_path / "book", book_bert.state_dict(), tiny_vocabulary())
