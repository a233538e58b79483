"""The environment of the tests."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import huggingface_hub


def test_hugging_face_libraries_are_offline_and_use_the_cache_of_this_session():
    """They read the environment when they are imported: `conftest.py` must set it before."""
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert Path(datasets.config.HF_DATASETS_CACHE) == Path(os.environ["HF_DATASETS_CACHE"])
    assert "bert-snli-tests-" in os.environ["HF_DATASETS_CACHE"]
