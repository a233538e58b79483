"""Reading files of sentence pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bert_snli.data.pair_files import count_pairs, iterate_pairs
from bert_snli.errors import BertSnliError
from tests.support.classifiers import random_pairs, write_pairs


def test_pairs_are_read_in_order_and_counted(tmp_path: Path):
    pairs = random_pairs(12)
    source = write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert list(iterate_pairs(source)) == pairs
    assert count_pairs(source) == 12


def test_file_without_pairs_is_refused(tmp_path: Path):
    with pytest.raises(BertSnliError, match="has no rows"):
        count_pairs(write_pairs(tmp_path / "empty.jsonl", []))


def test_lone_surrogate_error_names_the_row(tmp_path: Path):
    source = write_pairs(tmp_path / "pairs.jsonl", [("a", "b"), ("a \ud800", "b")])
    with pytest.raises(BertSnliError, match="row 2: premise is 'a \\\\ud800', not valid Unicode; correct"):
        count_pairs(source)


def test_missing_hypothesis_error_names_the_row(tmp_path: Path):
    source = write_pairs(tmp_path / "pairs.jsonl", random_pairs(3))
    with source.open("a") as file:
        file.write(json.dumps({"premise": "a man"}) + "\n")
    with pytest.raises(BertSnliError, match="row 4: no column hypothesis"):
        count_pairs(source)
