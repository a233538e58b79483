"""Stopping a run on SIGTERM (from a scheduler) or SIGINT (Ctrl-C)."""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType

import torch
import torch.distributed as dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A terminal sends Ctrl-C to the launcher and to the processes, and the launcher passes it on: a process gets it twice.
SECONDS_OF_ONE_CTRL_C = 1.0


class StopRequest:
    """A context that turns SIGTERM and SIGINT into a request to stop after an update. A second Ctrl-C stops at once.

    Signals reach one process or all, at different times. `received` makes the processes agree.
    """

    def __init__(self, num_processes: int):
        self.signum = 0
        self.first_sigint = math.inf
        # A gloo group exchanges signals in CPU memory, so that no process waits for its GPU.
        self.group = dist.new_group(backend="gloo") if num_processes > 1 else None

    def __enter__(self) -> StopRequest:
        self.handlers_before = {}
        if threading.current_thread() is threading.main_thread():  # Python handles signals in no other thread
            # nohup starts a process with ignored signals.
            numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self.handlers_before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        if self.signum and self.group is not None:
            return  # keep the handlers: the launcher's copy of a signal must not interrupt the end of this process
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            now = time.monotonic()
            if now - self.first_sigint > SECONDS_OF_ONE_CTRL_C:
                raise KeyboardInterrupt
            self.first_sigint = min(now, self.first_sigint)
        self.signum = signum

    def received(self) -> int:
        """Return the largest signal that any process has received, or 0. All processes must call."""
        if self.group is None:
            return self.signum
        signum = torch.tensor(self.signum)
        dist.all_reduce(signum, op=dist.ReduceOp.MAX, group=self.group)
        return int(signum)
