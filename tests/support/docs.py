"""The pages of the documentation and their code blocks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.support.processes import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
BLOCK = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class CodeBlock(NamedTuple):
    """A block of shell commands or of Python; `not_run` is the reason why no test runs it."""

    not_run: str
    language: str
    code: str


def code_blocks(path: Path) -> list[CodeBlock]:
    """Return the code blocks of a page."""
    return [CodeBlock(*found) for found in BLOCK.findall(path.read_text(encoding="utf-8"))]
