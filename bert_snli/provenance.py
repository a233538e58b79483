"""How a model came to be: a list of steps that lies beside it, which each run passes on with one of its own.

A folder has it as `provenance.md`, a file `pairs.jsonl` as `pairs.jsonl.provenance.md`; the model card shows it.
Whoever makes a model or pairs in another way than ours writes one too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bert_snli.errors import BertSnliError
from bert_snli.files import write_atomically

PROVENANCE = "provenance.md"


def note_of(source: Path) -> Path:
    """Where the steps to a model folder or a file of pairs are written."""
    return source / PROVENANCE if source.is_dir() else source.with_name(f"{source.name}.{PROVENANCE}")


def read_history(source: Path) -> list[str]:
    """The steps to `source`, in order; none if nobody wrote any.

    Raises:
        BertSnliError: they are no text, or no list.
    """
    note = note_of(source)
    if not note.is_file():
        return []
    try:
        lines = note.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BertSnliError(f"{note}: cannot be read ({error}); write it again or move it away") from error
    if odd := next((line for line in lines if line and not line.startswith("- ")), None):
        raise BertSnliError(f"{note}: {odd!r:.80} is no step; begin each line with '- '")
    return [line.removeprefix("- ") for line in lines if line]


def write_history(source: Path, steps: Sequence[str]) -> None:
    """Write the steps to `source`, a line each."""
    write_atomically(note_of(source), "".join(f"- {' '.join(step.split())}\n" for step in steps))
