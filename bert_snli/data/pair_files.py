"""Files of premise and hypothesis that a user wants labelled, and of the predictions."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from bert_snli.errors import BertSnliError
from bert_snli.modeling.pair_truncation import is_text

COLUMNS = ("premise", "hypothesis")
DELIMITERS = {".csv": ",", ".tsv": "\t"}


def iterate_pairs(path: Path, *, called: str | None = None) -> Iterator[tuple[str, str]]:
    """The (premise, hypothesis) of every row of a .jsonl, .csv or .tsv file; `called` is its name in messages.

    Raises:
        BertSnliError: not there, another kind of file, or a row without one of the two.
    """
    called = f"--input_file {path}" if called is None else called
    number = 0
    try:
        for number, row in enumerate(_rows(path, called), start=1):
            yield _pair(row, f"{called}: row {number}")
    except BertSnliError:
        raise
    except OSError as error:
        raise BertSnliError(f"{called}: {error.strerror}; give a .jsonl, .csv or .tsv file") from error
    except (ValueError, RecursionError, csv.Error) as error:
        reason = getattr(error, "msg", error)  # without the "line 1" of JSON, where each row is its own first line
        raise BertSnliError(
            f"{called}: cannot be read as {path.suffix} after row {number} ({reason}); mend it or leave it out"
        ) from error


def count_pairs(path: Path, *, called: str | None = None) -> int:
    """How many rows `iterate_pairs` gives: what is wrong with a file is found before the first is predicted.

    Raises:
        BertSnliError: as `iterate_pairs`, or there are none.
    """
    called = f"--input_file {path}" if called is None else called
    if path.is_fifo():
        raise BertSnliError(f"{called}: a pipe, which cannot be read twice; give a file")
    count = sum(1 for _ in iterate_pairs(path, called=called))
    if count == 0:
        raise BertSnliError(f"{called}: holds no pairs; give a row for each, with {' and '.join(COLUMNS)}")
    return count


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
        if not is_text(row[name]):
            what = f"{row[name]!r:.80} is not a text that can be written as UTF-8"
            raise BertSnliError(f"{where}: {what}; leave it out or mend it")
    return row["premise"], row["hypothesis"]


def check_writable(path: Path) -> None:
    """See before the work is done that its predictions can be written.

    Raises:
        BertSnliError: they cannot.
    """
    if path.is_dir() or not path.resolve().parent.is_dir() or not os.access(path.resolve().parent, os.W_OK):
        raise BertSnliError(f"--output_file {path}: cannot be written; name a file in a folder that exists")


def format_predictions(pairs: Sequence[tuple[str, str]], predictions: Sequence[dict[str, float]]) -> str:
    """A JSON line for each pair: premise, hypothesis, label and the score of each label."""
    lines = [
        json.dumps({"premise": premise, "hypothesis": hypothesis, "label": next(iter(scores)), "scores": scores})
        for (premise, hypothesis), scores in zip(pairs, predictions, strict=True)
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def open_output(path: Path | None) -> Iterator[TextIO]:
    """Where lines of `format_predictions` go: stdout, or a file that comes to be at `path` when the block ends well.

    Raises:
        BertSnliError: it cannot be written, or not to its end.
    """
    if path is None:
        yield sys.stdout
        return
    path = path.resolve()
    if path.exists() and not path.is_file():  # a device or a pipe: nothing to be put in its place
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise BertSnliError(f"--output_file {path}: cannot be written ({error.strerror}); name another file") from error
    finally:
        temporary.unlink(missing_ok=True)
