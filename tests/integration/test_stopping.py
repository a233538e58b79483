"""Two processes stop after the same update when one of them gets a signal."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bert_snli.training.stopping import StopRequest

SCRIPT = """
import sys
import torch.distributed as dist
from bert_snli.training.stopping import StopRequest

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
with StopRequest(2) as request:
    received = [request.received()]
    request.signum = 15 * rank  # only one process gets the signal
    received.append(request.received())
print(*received)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_all_processes_receive_the_signal_of_one(tmp_path: Path):
    command = [sys.executable, "-c", SCRIPT]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert printed == ["0 15\n", "0 15\n"]


def test_second_sigint_stops_at_once_but_not_the_copy_of_the_launcher(monkeypatch: pytest.MonkeyPatch):
    """The launcher sends a SIGTERM in between if another process has ended."""
    with StopRequest(1) as request:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert request.received() == signal.SIGINT
        signal.raise_signal(signal.SIGTERM)
        assert request.received() == signal.SIGTERM
        seconds = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: seconds + 1.5)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
