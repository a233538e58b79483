"""Stopping when asked: SIGTERM (a machine that is taken away, a scheduler) and SIGINT (Ctrl-C)."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import torch
import torch.distributed as dist

STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A context in which SIGTERM and SIGINT are wishes to stop after the running update; a second SIGINT stops at once.

    Signals come to one process or to all, and not at one time; the processes agree on the update.
    """

    def __init__(self, num_processes: int):
        self.signum = 0
        # Of its own, in the processors' memory: a GPU is not waited for.
        self.group = dist.new_group(backend="gloo") if num_processes > 1 else None

    def __enter__(self) -> StopRequest:
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # only it gets signals
            heard = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]  # as nohup has it
            self.before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_) -> None:
        if self.signum and self.group is not None:
            return  # the launcher ends whoever has not left when the first does: who is on the way out, leaves in peace
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum

    def agreed(self) -> int:
        """The signal that any process has had by now, or 0; the same in all, which all must ask."""
        if self.group is None:
            return self.signum
        told = torch.tensor(self.signum)
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self.group)
        return int(told)
