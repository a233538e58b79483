"""Stopping when asked: SIGTERM (a machine that is taken away, a scheduler) and SIGINT (Ctrl-C)."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import torch
import torch.distributed as dist

STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A context that turns SIGTERM and SIGINT into requests to stop after an update; a second SIGINT stops at once.

    Signals reach one process or all, at different times. The processes agree on the update after which they stop. They
    exchange their signals in the background while the next update runs, so several processes stop one update later
    than one process does. At the end of an epoch and of an evaluation they wait for each other.
    """

    def __init__(self, num_processes: int):
        self.signum = 0
        # A gloo group exchanges signals in CPU memory, so that no process waits for its GPU.
        self.group = dist.new_group(backend="gloo") if num_processes > 1 else None
        self.exchange: tuple[dist.Work, torch.Tensor] | None = None  # the running one

    def __enter__(self) -> StopRequest:
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # only it gets signals
            heard = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]  # as nohup has it
            self.before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_) -> None:
        if error_type is None:
            self._finish_exchange()
        if self.signum and self.group is not None:
            return  # the launcher ends whoever has not left when the first does: who is on the way out, leaves in peace
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum

    def agreed(self, *, now: bool = False) -> int:
        """Return the signal on which the processes agree, or 0. All processes must call.

        One process gets its own signal at once. Several get the largest one that any of them had received before the
        previous call. With `now` they wait for each other and get those received before this call, too.
        """
        if self.group is None:
            return self.signum
        signum = self._finish_exchange()
        if signum == 0:
            received = torch.tensor(self.signum)
            work = dist.all_reduce(received, op=dist.ReduceOp.MAX, group=self.group, async_op=True)
            self.exchange = work, received
            if now:
                signum = self._finish_exchange()
        return signum

    def _finish_exchange(self) -> int:
        """Wait for the running exchange and return its signal; 0 if none is running."""
        if self.exchange is None:
            return 0
        work, received = self.exchange
        self.exchange = None
        work.wait()
        return int(received.item())
