"""Run a benchmark in stages. A stage that fails does not stop the other stages."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import markdown

Row = dict[str, Any]  # of a table; a false `ok` says that a result is outside its tolerance
Record = dict[str, Any]  # of a stage: its name, status, seconds, reason and rows
TRACEBACK_LINES = 8


class Skipped(Exception):
    """Raised by a stage that cannot run. The message is the reason."""


class Stage(NamedTuple):
    """A stage. `rows` measures and yields the rows of a table. `needs` is the expected time in seconds."""

    name: str
    needs: float
    rows: Callable[[Any], Iterator[Row]]


def run_stages(
    stages: Sequence[Stage],
    subject: Any,
    *,
    deadline: float,
    save: Callable[[list[Record]], None],
    prepare: Callable[[], None] = lambda: None,
) -> list[Record]:
    """Run the stages one after the other; returns their records.

    Args:
        subject: the argument of each stage.
        deadline: time of `time.monotonic()` at which to stop.
        save: called with all records so far, before and after each stage.
        prepare: called before each stage.
    """
    records: list[Record] = []
    for stage in stages:
        record: Record = {"stage": stage.name, "status": "running", "seconds": 0.0, "reason": "", "rows": []}
        records.append(record)
        save(records)
        begun = time.monotonic()
        try:
            if deadline - begun < stage.needs:
                raise Skipped(f"needs about {stage.needs:.0f} s; {max(0.0, deadline - begun):.0f} s are left")
            prepare()
            for row in stage.rows(subject):
                record["rows"].append(row)
                if time.monotonic() > deadline:
                    raise Skipped("stopped at the deadline")
            record["status"] = "ok"
        except Skipped as skipped:
            record |= {"status": "partial" if record["rows"] else "skipped", "reason": str(skipped)}
        except (Exception, SystemExit):
            last = traceback.format_exc().splitlines()[-TRACEBACK_LINES:]
            record |= {"status": "failed", "reason": "\n".join(last)}
        if record["status"] != "failed" and not all(row.get("ok", True) for row in record["rows"]):
            record["status"] = "wrong"
        record["seconds"] = round(time.monotonic() - begun, 1)
        save(records)
    return records


def describe(records: Sequence[Record]) -> str:
    """Format the records as Markdown: a table of the stages, then the rows of each stage."""
    header = ["stage", "status", "seconds", "reason"]
    parts = [markdown(header, [[_cell(record[name]) for name in header] for record in records])]
    for record in records:
        if record["rows"]:
            names = list(dict.fromkeys(name for row in record["rows"] for name in row))
            rows = [[_cell(row.get(name, "")) for name in names] for row in record["rows"]]
            parts += [f"## {record['stage']}", markdown(names, rows)]
        if record["status"] == "failed":
            parts += [f"## {record['stage']}: failed", f"```\n{record['reason']}\n```"]
    return "\n\n".join(parts) + "\n"


def _cell(value: Any) -> str:
    """Format a value for a table. Of a text, only the last line is shown: the message of a traceback."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return (str(value).splitlines() or [""])[-1].replace("|", "\\|")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader never sees an incomplete file."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
