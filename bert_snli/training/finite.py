"""Losses and gradients that are no numbers, caught at their step: which batch, and which of its rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bert_snli.errors import BertSnliError
from bert_snli.files import write_atomically
from bert_snli.training.checkpointing import Progress

NON_FINITE = "non_finite.json"


class Watched(NamedTuple):
    """A loss or a norm that should be a number, and the batch that it is of."""

    what: str
    value: torch.Tensor
    rows: np.ndarray
    epoch: int
    batch: int
    step: int


class NonFiniteDetector:
    """Looks at each loss and gradient: at once, or, so as not to wait for a GPU, when told to.

    Args:
        loss_of: computes the loss of one row.
        output_dir: for `non_finite.json`.
        at_once: before the weights are stepped along a gradient; later, no row's own loss is a number any more.
        detect_anomalies: name the first operation whose gradient is no number.
    """

    def __init__(
        self,
        loss_of: Callable[[int], torch.Tensor],
        output_dir: Path,
        *,
        at_once: bool = True,
        detect_anomalies: bool = False,
    ):
        self.loss_of, self.output_dir, self.at_once = loss_of, output_dir, at_once
        self.detect_anomalies = detect_anomalies
        self.watched: list[Watched] = []

    def add(self, what: str, value: torch.Tensor, rows: np.ndarray, progress: Progress) -> None:
        """Watch a loss or a norm of the update that comes after `progress`, on the global batch `rows`."""
        update = (progress.epoch + 1, progress.batch + 1, progress.step + 1)
        self.watched.append(Watched(what, value.detach(), rows, *update))
        if self.at_once:
            self.look()

    def look(self) -> None:
        """See whether all that is watched are numbers.

        Raises:
            BertSnliError: one is not; its batch is named, and `non_finite.json` lists its rows.
        """
        watched, self.watched = self.watched, []
        if watched and not torch.stack([entry.value for entry in watched]).isfinite().all():
            raise BertSnliError(self._tell_of(next(entry for entry in watched if not entry.value.isfinite())))

    def _tell_of(self, bad: Watched) -> str:
        """What went wrong, in words; the rows whose own loss is no number are sought one by one."""
        non_finite_rows = [row for row in bad.rows.tolist() if self.at_once and not self.loss_of(row).isfinite()]
        path = self.output_dir / NON_FINITE
        found = {"what": bad.what, "step": bad.step, "epoch": bad.epoch, "batch": bad.batch}
        write_atomically(
            path, json.dumps({**found, "rows": bad.rows.tolist(), "rows_without_a_finite_loss": non_finite_rows}) + "\n"
        )
        if len(non_finite_rows) == len(bad.rows):
            which = "all of its rows: the weights have grown too large"
        elif non_finite_rows:
            first = ", ".join(map(str, non_finite_rows[:5])) + " ..." * (len(non_finite_rows) > 5)
            which = f"row{'s' * (len(non_finite_rows) > 1)} {first}"
        else:
            which = f"its {len(bad.rows)} rows together"
        return (
            f"the {bad.what} is not finite at step {bad.step} (batch {bad.batch} of epoch {bad.epoch}, {which}; "
            f"see {path}); lower --learning_rate, set --max_grad_norm, or search with --detect_anomalies true"
        )

    @contextmanager
    def anomalies(self) -> Iterator[None]:
        """A forward and a backward pass; with `detect_anomalies` the first operation without a gradient is named.

        Raises:
            BertSnliError: there is one; PyTorch's warning shows where it was computed.
        """
        if not self.detect_anomalies:
            yield
            return
        try:
            with torch.autograd.set_detect_anomaly(True):
                yield
        except RuntimeError as error:
            if "returned nan" not in str(error):
                raise
            raise BertSnliError(f"--detect_anomalies: {error} The warning above shows its line") from error
