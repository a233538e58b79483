"""The folder of real data and checkpoints next to the repository. Tests that need it are skipped without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("BERT_SNLI_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def real_data(path: str) -> Path:
    """Return the real file or folder `path`. Skip the test if it does not exist."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs real data: {path}")
    return found
