"""Stop a run on SIGTERM (from a scheduler) or SIGINT (Ctrl-C)."""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType

import torch
import torch.distributed as dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A process receives one Ctrl-C twice: from the terminal, and from the launcher, which forwards it.
CTRL_C_REPEAT_SECONDS = 1.0


class StopRequest:
    """Context manager: SIGTERM or SIGINT requests a stop after the current update. A second Ctrl-C stops at once.

    A signal may reach one process or all, at different times. `received` returns the same signal in all processes.
    """

    def __init__(self, num_processes: int):
        self.signum = 0
        self.first_sigint = math.inf
        # A gloo group exchanges signals in CPU memory, so that no process waits for its GPU.
        self.group = dist.new_group(backend="gloo") if num_processes > 1 else None

    def __enter__(self) -> StopRequest:
        self.handlers_before = {}
        if threading.current_thread() is threading.main_thread():  # Python handles signals only there
            # Signals that the process ignores stay ignored, for example under nohup.
            numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self.handlers_before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        if self.signum and self.group is not None:
            return  # keep the handlers, because the launcher may forward the signal while this process ends
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            now = time.monotonic()
            if now - self.first_sigint > CTRL_C_REPEAT_SECONDS:
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
