"""Helpers for tests that start processes or servers."""

from __future__ import annotations

import resource
import signal
import socket
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH = [  # `python LAUNCH COMMAND ...` runs a command of bert-snli in two processes
    *("-m", "accelerate.commands.accelerate_cli", "launch"),
    *("--config_file", REPOSITORY / "accelerate_config.yaml", "--num_processes", 2),
    *("-m", "bert_snli.cli"),
]


def unused_port() -> int:
    """Return a free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def limit_file_size() -> None:
    """Limit files to 20 kB (for `preexec_fn`): a write beyond it fails as it does on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
