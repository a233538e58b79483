"""Files of premise and hypothesis that a user wants labelled, and of the answers."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bert_snli.errors import BertSnliError

COLUMNS = ("premise", "hypothesis")
DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_pairs(path: Path, *, called: str | None = None) -> list[tuple[str, str]]:
    """The (premise, hypothesis) of every row of a .jsonl, .csv or .tsv file; `called` is its name in messages.

    Raises:
        BertSnliError: not there, another kind of file, no rows, or a row without one of the two.
    """
    called = f"--input_file {path}" if called is None else called
    try:
        pairs = [_pair(row, f"{called}: row {number}") for number, row in enumerate(_rows(path, called), start=1)]
    except OSError as error:
        raise BertSnliError(f"{called}: {error.strerror}; give a .jsonl, .csv or .tsv file") from error
    except (ValueError, RecursionError, csv.Error) as error:
        raise BertSnliError(f"{called}: cannot be read as {path.suffix} ({error})") from error
    if not pairs:
        raise BertSnliError(f"{called}: holds no pairs; give a row for each, with {' and '.join(COLUMNS)}")
    return pairs


def _rows(path: Path, called: str) -> Iterator[object]:
    if path.suffix not in (".jsonl", *DELIMITERS):
        raise BertSnliError(f"{called}: unknown kind {path.suffix!r}; give .jsonl, .csv or .tsv")
    # utf-8-sig: Excel begins its files with a byte-order mark.
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".jsonl":
            yield from (json.loads(line) for line in file if line.strip())
        else:
            yield from csv.DictReader(file, delimiter=DELIMITERS[path.suffix])


def _pair(row: Any, where: str) -> tuple[str, str]:
    for name in COLUMNS:
        if not isinstance(row, dict) or not isinstance(row.get(name), str):
            raise BertSnliError(f"{where}: no {name}; name the columns {' and '.join(COLUMNS)}")
    return row["premise"], row["hypothesis"]


def check_writable(path: Path) -> None:
    """See before the work is done that its answers can be written.

    Raises:
        BertSnliError: they cannot.
    """
    if path.is_dir() or not path.resolve().parent.is_dir() or not os.access(path.resolve().parent, os.W_OK):
        raise BertSnliError(f"--output_file {path}: cannot be written; name a file in a folder that exists")


def format_answers(pairs: Sequence[tuple[str, str]], answers: Sequence[dict[str, float]]) -> str:
    """A JSON line for each pair: premise, hypothesis, label and the score of each label."""
    lines = [
        json.dumps({"premise": premise, "hypothesis": hypothesis, "label": next(iter(scores)), "scores": scores})
        for (premise, hypothesis), scores in zip(pairs, answers, strict=True)
    ]
    return "\n".join(lines) + "\n"


def write_answers(pairs: Sequence[tuple[str, str]], answers: Sequence[dict[str, float]], path: Path | None) -> None:
    """Write the lines of `format_answers` to `path` or stdout."""
    text = format_answers(pairs, answers)
    if path is None:
        sys.stdout.write(text)
        return
    path.write_text(text, encoding="utf-8")
