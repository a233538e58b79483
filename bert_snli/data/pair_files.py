"""Read files of pairs, write files of predictions, and describe errors in files of pairs."""

import csv
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, TextIO

from bert_snli.errors import BertSnliError
from bert_snli.files import explain_write_errors, replace_file
from bert_snli.modeling.pair_truncation import is_text

COLUMNS = ("premise", "hypothesis")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JOINED_NAMES = re.compile(r'[\w".]+(?: ?([;|,\t]) ?[\w".]+)+')  # a header line that was not split: premise;hypothesis


def iterate_pairs(path: Path, *, name: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield the pairs in a .jsonl, .csv or .tsv file. Error messages call the file `name`."""
    name = name or f"input_file {path}"
    if path.suffix not in (".jsonl", *DELIMITERS):
        raise BertSnliError(f"{name}: unknown file type {path.suffix!r}; give a .jsonl, .csv or .tsv file")
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel begins its files with a byte-order mark
            if path.suffix == ".jsonl":
                rows: Iterator[Any] = (json.loads(line) for line in file if line.strip())
            else:
                rows = csv.DictReader(file, delimiter=DELIMITERS[path.suffix])
                check_delimiter(rows.fieldnames or (), DELIMITERS[path.suffix], name)
            for number, row in enumerate(rows, start=1):
                where, row = f"{name}: row {number}", row if isinstance(row, dict) else {}
                for column in COLUMNS:
                    if column not in row:
                        raise no_column_error(where, [column], list(row), "name the columns premise and hypothesis")
                    has_more = any(row.get(None, ()))
                    problem = "more cells than column names; write texts with ',' in quotes" if has_more else None
                    if problem := problem or find_problem(column, row[column]):
                        raise BertSnliError(f"{where}: {problem}")
                yield row["premise"], row["hypothesis"]
    except BertSnliError:
        raise
    except OSError as error:
        raise BertSnliError(f"{name}: {error.strerror}; give a .jsonl, .csv or .tsv file") from error
    except (ValueError, RecursionError, csv.Error) as error:
        damage = describe_damage(path) or f"row {number + 1} cannot be read ({error}); correct or remove the row"
        raise BertSnliError(f"{name}: {damage}") from error


def check_delimiter(header: Sequence[str], delimiter: str, where: str) -> None:
    """Check that the columns of a table are separated by `delimiter`, and not by another character."""
    if len(header) == 1 and (match := JOINED_NAMES.fullmatch(header[0])):
        what = f"its columns are separated by {match[1]!r}, not by {delimiter!r}"
        raise BertSnliError(f"{where}: {what}; save the file with {delimiter!r} between the columns")


def no_column_error(where: str, names: Sequence[str], found: Sequence[str], remedy: str) -> BertSnliError:
    """Return the error about a table that has none of the columns `names`."""
    for name in found:
        if (lower := name.strip().lower()) in names:
            return BertSnliError(f"{where}: column {name!r} must be written {lower!r}; rename the column")
    shown = ", ".join(repr(shorten(name, 40, placeholder=" ...")) for name in found[:12]) or "none"
    return BertSnliError(f"{where}: no column {' or '.join(names)} (found: {shown}); {remedy}")


def find_problem(role: str, value: object) -> str | None:
    """Return `problem; remedy` for a value of the column `role`, or None if the value is a valid text."""
    if is_text(value):
        return None
    if value is None:
        return f"no {role}; correct or remove the row"
    problem = "not valid Unicode; correct" if isinstance(value, str) else "not a text; write it in quotes"
    return f"{role} is {value!r:.40}, {problem} or remove the row"


def describe_damage(path: Path) -> str | None:
    """Return `problem; remedy` for the first line with invalid UTF-8 or (in .jsonl) invalid JSON, or None."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig")
                row = json.loads(text) if path.suffix == ".jsonl" and text.strip() else {}
            except UnicodeDecodeError as error:
                byte = f"byte {error.start + 1} is {error.object[error.start]:#x}"
                return f"line {number} is not UTF-8 ({byte}); save the file as UTF-8"
            except (ValueError, RecursionError) as error:
                return f"line {number} is not JSON ({getattr(error, 'msg', error)}); correct or remove the line"
            for name in (*COLUMNS, "sentence1", "sentence2"):
                if isinstance(row, dict) and not isinstance(row.get(name) or "", str):
                    return f"line {number}: {name} is {row[name]!r:.40}, not a text; write it in quotes"
    return None


def count_pairs(path: Path, *, name: str | None = None) -> int:
    """Count the pairs in a file. This finds errors in the file before the first prediction."""
    count = sum(1 for _ in iterate_pairs(path, name=name))
    if count == 0:
        raise BertSnliError(f"{name or f'input_file {path}'}: has no rows; add rows with {' and '.join(COLUMNS)}")
    return count


def check_writable(path: Path) -> None:
    """Check before a long computation that its output file can be written."""
    folder = path.resolve().parent
    if (path.exists() and not path.is_file()) or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise BertSnliError(f"output_file {path}: cannot be written; give a file in an existing folder")


def format_predictions(pairs: Sequence[tuple[str, str]], predictions: Sequence[dict[str, float]]) -> str:
    """Format each pair as a JSON line with premise, hypothesis, label and the score of each label."""
    lines = [
        json.dumps({"premise": premise, "hypothesis": hypothesis, "label": next(iter(scores)), "scores": scores})
        for (premise, hypothesis), scores in zip(pairs, predictions, strict=True)
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def open_output(path: Path | None) -> Iterator[TextIO]:
    """Yield stdout, or a temporary file that replaces `path` when the block ends without an error."""
    if path is None:
        yield sys.stdout
        return
    with (
        explain_write_errors(path),
        replace_file(path.resolve()) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        yield file
