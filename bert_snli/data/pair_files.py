"""Read files of pairs, write files of predictions, and describe errors in files of pairs."""

import csv
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def iterate_pairs(
    path: Path, *, name: str | None = None, columns: Sequence[str] = COLUMNS
) -> Iterator[tuple[str, str]]:
    """Yield the pairs in two columns of a .jsonl, .csv or .tsv file. Error messages call the file `name`."""
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
                for column in columns:
                    if column not in row:
                        remedy = "name the columns premise and hypothesis, or set columns premise=NAME"
                        raise no_column_error(where, [column], list(row), remedy)
                    has_more = any(row.get(None, ()))
                    problem = "more cells than column names; write texts with ',' in quotes" if has_more else None
                    if problem := problem or find_problem(column, row[column]):
                        raise BertSnliError(f"{where}: {problem}")
                yield row[columns[0]], row[columns[1]]
    except BertSnliError:
        raise
    except OSError as error:
        raise BertSnliError(f"{name}: {error.strerror}; give a .jsonl, .csv or .tsv file") from error
    except (ValueError, RecursionError, csv.Error) as error:
        damage = describe_damage(path) or f"row {number + 1} cannot be read ({error}); correct or remove the row"
        raise BertSnliError(f"{name}: {damage}") from error


def check_roles(columns: Mapping[str, str]) -> None:
    """Check the keys of a mapping from premise, hypothesis and label to the names of columns."""
    for role, name in columns.items():
        if role not in (*COLUMNS, "label"):
            raise BertSnliError(f"columns {role}={name}: write premise|hypothesis|label=NAME")


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


def count_pairs(path: Path, *, name: str | None = None, columns: Sequence[str] = COLUMNS) -> int:
    """Count the pairs in a file. This finds errors in the file before the first prediction."""
    count = sum(1 for _ in iterate_pairs(path, name=name, columns=columns))
    if count == 0:
        raise BertSnliError(f"{name or f'input_file {path}'}: has no rows; add rows with {' and '.join(columns)}")
    return count


def check_writable(path: Path) -> None:
    """Check before a long computation that its output file can be written."""
    folder = path.resolve().parent
    if (path.exists() and not path.is_file()) or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise BertSnliError(f"output_file {path}: cannot be written; give a file in an existing folder")


def write_predictions(
    file: TextIO, chunks: Iterable[tuple[Sequence[tuple[str, str]], Sequence[dict[str, float]]]], output_format: str
) -> None:
    """Write premise, hypothesis, label and scores of each pair. `chunks` are pairs with their predictions.

    The format `jsonl` has an object with the scores of all labels in each line, `json` has a list of these objects, and
    `csv` has a column for the score of each label.
    """
    rows = (
        ({"premise": premise, "hypothesis": hypothesis, "label": next(iter(scores))}, scores)
        for pairs, predictions in chunks
        for (premise, hypothesis), scores in zip(pairs, predictions, strict=True)
    )
    if output_format == "csv":
        table = None
        for row, scores in rows:
            if table is None:
                table = csv.DictWriter(file, [*row, *sorted(scores)], lineterminator="\n")
                table.writeheader()
            table.writerow(row | scores)
        return
    before, separator, end = ("[\n", ",\n", "\n]\n") if output_format == "json" else ("", "\n", "\n")
    for row, scores in rows:
        file.write(before + json.dumps(row | {"scores": scores}))
        before = separator
    file.write(end)


@contextmanager
def open_input(path: Path) -> Iterator[Path]:
    """Yield the path of a file of pairs. Standard input (`-`) is copied to a temporary file.

    The first line of standard input decides its format: an object of JSON, or column names with tabs or commas.
    """
    if str(path) != "-":
        yield path
        return
    first = sys.stdin.buffer.readline()
    suffix = ".jsonl" if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") else ".tsv" if b"\t" in first else ".csv"
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(first)
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield Path(file.name)


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
