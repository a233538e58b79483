"""Run commands in this process."""

from __future__ import annotations

import pytest

from bert_snli.cli import main


def error_line(command: list, capsys: pytest.CaptureFixture) -> str:
    """Run `command`, which must fail with exit code 2 and print one line that contains `error:`. Return that line."""
    try:
        code = main([str(word) for word in command])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2, error
    lines = [line for line in error.splitlines() if "error:" in line]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]
