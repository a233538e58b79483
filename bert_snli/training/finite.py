"""Detection of non-finite losses and gradients: the step, the batch and its rows."""

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
    """A loss or gradient norm that should be finite, and the batch that it belongs to."""

    what: str
    value: torch.Tensor
    rows: np.ndarray
    epoch: int
    batch: int
    step: int


class NonFiniteDetector:
    """Checks that losses and gradient norms are finite.

    Args:
        loss_of: computes the loss of one row.
        output_dir: where `non_finite.json` is written.
        at_once: check each value when it is added, before the optimizer step, so that the loss of each row can still be
            computed. Otherwise `check` checks all values, so that the host does not wait for a GPU at each step.
        detect_anomalies: name the first operation whose gradient is not finite.
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
        """Add a loss or gradient norm of the update after `progress`, on the global batch `rows`."""
        update = (progress.epoch + 1, progress.batch + 1, progress.step + 1)
        self.watched.append(Watched(what, value.detach(), rows, *update))
        if self.at_once:
            self.check()

    def check(self) -> None:
        """Check the values that were added since the last call.

        Raises:
            BertSnliError: a value is not finite. The message names its batch; `non_finite.json` lists the rows.
        """
        watched, self.watched = self.watched, []
        if watched and not torch.stack([entry.value for entry in watched]).isfinite().all():
            raise BertSnliError(self._describe(next(entry for entry in watched if not entry.value.isfinite())))

    def _describe(self, bad: Watched) -> str:
        """Write `non_finite.json` and return the message. The loss of each row is computed alone."""
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
