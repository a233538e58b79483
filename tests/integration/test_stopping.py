"""Two processes stop after the same update when one of them gets a signal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
