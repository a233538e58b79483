"""Files of pairs to predict, and of predictions."""

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from bert_snli.errors import BertSnliError
from bert_snli.files import explain_write_errors, replace_file
from bert_snli.modeling.pair_truncation import is_text

COLUMNS = ("premise", "hypothesis")
DELIMITERS = {".csv": ",", ".tsv": "\t"}


def iterate_pairs(path: Path, *, name: str | None = None) -> Iterator[tuple[str, str]]:
    """Read premise and hypothesis of each row of a .jsonl, .csv or .tsv file, which error messages call `name`."""
    name = name or f"input_file {path}"
    if path.suffix not in (".jsonl", *DELIMITERS):
        raise BertSnliError(f"{name}: unknown kind {path.suffix!r}; give .jsonl, .csv or .tsv")
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel begins its files with a byte-order mark
            if path.suffix == ".jsonl":
                rows: Iterator[Any] = (json.loads(line) for line in file if line.strip())
            else:
                rows = csv.DictReader(file, delimiter=DELIMITERS[path.suffix])
            for number, row in enumerate(rows, start=1):
                for column in COLUMNS:
                    if not isinstance(row, dict) or not is_text(row.get(column)):
                        remedy = f"name the columns {' and '.join(COLUMNS)}, and save the texts as UTF-8"
                        raise BertSnliError(f"{name}: row {number}: no {column}; {remedy}")
                yield row["premise"], row["hypothesis"]
    except BertSnliError:
        raise
    except OSError as error:
        raise BertSnliError(f"{name}: {error.strerror}; give a .jsonl, .csv or .tsv file") from error
    except (ValueError, RecursionError, csv.Error) as error:
        reason = getattr(error, "msg", error)  # without the "line 1" of JSON, where each row is its own first line
        what = f"cannot be read as {path.suffix} after row {number} ({reason})"
        raise BertSnliError(f"{name}: {what}; correct or remove the row") from error


def count_pairs(path: Path, *, name: str | None = None) -> int:
    """Count the pairs that `iterate_pairs` gives, and so find errors in the file before the first prediction."""
    count = sum(1 for _ in iterate_pairs(path, name=name))
    if count == 0:
        raise BertSnliError(f"{name or f'input_file {path}'}: holds no pairs; add rows with {' and '.join(COLUMNS)}")
    return count


def check_writable(path: Path) -> None:
    """Check before a long computation that its output file can be written."""
    folder = path.resolve().parent
    if (path.exists() and not path.is_file()) or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise BertSnliError(f"output_file {path}: cannot be written; name a file in a folder that exists")


def format_predictions(pairs: Sequence[tuple[str, str]], predictions: Sequence[dict[str, float]]) -> str:
    """Format each pair as a JSON line with premise, hypothesis, label and the score of each label."""
    lines = [
        json.dumps({"premise": premise, "hypothesis": hypothesis, "label": next(iter(scores)), "scores": scores})
        for (premise, hypothesis), scores in zip(pairs, predictions, strict=True)
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def open_output(path: Path | None) -> Iterator[TextIO]:
    """Open the standard output, or a file that replaces `path` when the block ends without an error."""
    if path is None:
        yield sys.stdout
        return
    with (
        explain_write_errors(path),
        replace_file(path.resolve()) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        yield file
