"""The training loop: updates on global batches, an evaluation after each epoch, and checkpoints."""

import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from bert_snli.data.batching import GlobalBatchSampler
from bert_snli.errors import BertSnliError, Stopped
from bert_snli.files import METRICS, atomic_folder, flush_to_disk
from bert_snli.training.arguments import BaseTrainingArguments
from bert_snli.training.checkpointing import Progress, save_checkpoint
from bert_snli.training.run_folder import append_metrics, tracker_metrics
from bert_snli.training.stopping import StopRequest
from bert_snli.training.task import TrainingTask

DIVERGENCE_REMEDY = "lower learning_rate or set max_grad_norm"
logger = logging.getLogger(__name__)


@dataclass
class TrainingLoop:
    """Runs the updates and evaluations of one run."""

    arguments: BaseTrainingArguments
    accelerator: Accelerator
    task: TrainingTask
    module: nn.Module  # as prepared by the accelerator, like the optimizer
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    sampler: GlobalBatchSampler
    total_updates: int
    progress: Progress  # `run` updates it

    def __post_init__(self):
        self.output_dir = Path(self.arguments.output_dir)
        resumed = self.arguments.resume_from_checkpoint
        self.newest_checkpoint = Path(resumed) if resumed else None
        self.grad_norm = torch.zeros(())
        self.clock = time.perf_counter()

    def run(self) -> None:
        """Train until the last update. After a signal, write a checkpoint and raise `Stopped`."""
        with StopRequest(self.accelerator.num_processes) as request:
            # A checkpoint may have been written between the last update of an epoch and its evaluation.
            while self._has_updates_left() or self.progress.batch:
                self._train_epoch(request)
                self._evaluate_epoch()
                if self._has_updates_left():
                    self._stop_if_requested(request)

    def _has_updates_left(self) -> bool:
        return self.progress.step < self.total_updates

    def _train_epoch(self, request: StopRequest) -> None:
        progress, arguments = self.progress, self.arguments
        self.module.train()
        self.sampler.set_epoch(progress.epoch, first_batch=progress.batch)
        self.task.pairs.set_epoch(progress.epoch)
        batches = self.sampler.global_batches()
        micro_batches = (self.task.pairs[micro_batch] for micro_batch in self.sampler)
        self._start_interval(progress.interval_sums)
        self.clock = time.perf_counter()
        hide = None if self.accelerator.is_local_main_process else True  # None hides the bar without a terminal
        name = f"Epoch {progress.epoch + 1}"
        with tqdm(total=len(self.task.pairs), desc=name, unit=" examples", disable=hide) as bar:
            bar.update(sum(map(len, batches[: progress.batch])))
            while progress.batch < len(batches) and progress.step < self.total_updates:
                rows = batches[progress.batch]
                self._update(micro_batches, rows)
                progress.batch += 1
                progress.step += 1
                bar.update(len(rows))
                is_last = progress.batch == len(batches) or progress.step == self.total_updates
                if is_last or progress.step % arguments.logging_steps == 0:
                    self._show_interval(bar, self._log_interval())
                if arguments.save_steps and progress.step % arguments.save_steps == 0:
                    self._save_checkpoint()
                self._stop_if_requested(request)

    def _update(self, micro_batches: Iterator[dict[str, torch.Tensor]], rows: np.ndarray) -> None:
        """Make one update on the global batch `rows`."""
        accelerator = self.accelerator
        for remaining in reversed(range(self.arguments.num_micro_batches)):
            with accelerator.no_sync(self.module) if remaining else nullcontext():
                loss, sums = self.task.objective(self.module, next(micro_batches), rows)
                # DistributedDataParallel averages gradients over processes, but the loss is the sum over processes.
                accelerator.backward(loss * accelerator.num_processes)
            self.interval_sums += sums
        self.interval_rows += len(rows)
        self.grad_norm = accelerator.clip_grad_norm_(self.module.parameters(), self.arguments.max_grad_norm or math.inf)
        self.optimizer.step()
        # The learning rate depends only on the step number. It also changes when the optimizer skips an update after an
        # fp16 overflow, because the host would have to wait for the GPU to detect this with fused AdamW.
        self.scheduler.step()
        self.optimizer.zero_grad()

    def _start_interval(self, sums: list[float]) -> None:
        """Reset the sums for the next line of metrics to `sums`, or to 0. A resumed run gives those of the checkpoint.

        The sums are float64, so that the order in which the processes are added hardly changes them.
        """
        is_initial = self.accelerator.is_main_process and sums
        start = sums if is_initial else [0.0] * self.task.objective.num_sums
        dtype = torch.float32 if self.accelerator.device.type == "mps" else torch.float64  # MPS has no float64
        self.interval_sums = torch.tensor(start, dtype=dtype, device=self.accelerator.device)
        self.interval_rows, self.interval_start = 0, self.progress.seconds
        self.progress.interval_sums = []

    def _reduce_interval_sums(self) -> list[float]:
        """Return the sums of all processes since the last line of metrics, and add the time to the training time."""
        sums: list[float] = self.accelerator.reduce(self.interval_sums, "sum").tolist()  # waits for the device
        now = time.perf_counter()
        self.progress.seconds, self.clock = self.progress.seconds + now - self.clock, now
        # In fp16 the gradient scaler skips updates with non-finite gradients.
        is_finite = self.accelerator.scaler is not None or bool(self.grad_norm.isfinite())
        if not (is_finite and all(map(math.isfinite, sums))):
            when = f"at step {self.progress.step} or shortly before"
            raise BertSnliError(f"the loss or its gradient is not finite {when}; {DIVERGENCE_REMEDY}")
        return sums

    def _show_interval(self, bar: tqdm, entry: dict[str, Any]) -> None:
        """Show the loss in the progress bar. If there is no bar, log the loss and the throughput."""
        loss = f"{entry['train_loss']:.3f}"
        if not bar.disable:
            bar.set_postfix(loss=loss)
        elif self.accelerator.is_main_process:
            step, rate = f"{entry['step']:,} of {self.total_updates:,}", entry["train_samples_per_second"]
            logger.info("step %s: loss %s, %s examples/s", step, loss, f"{rate:,.0f}")

    def _log_interval(self) -> dict[str, Any]:
        """Write and return a line of metrics about the updates since the last line."""
        progress, sums = self.progress, self._reduce_interval_sums()
        epoch_sums = progress.epoch_sums or [0.0] * len(sums)
        progress.epoch_sums = [total + value for total, value in zip(epoch_sums, sums, strict=True)]
        entry = {
            "step": progress.step,
            "epoch": self._epochs_done(),
            **{f"train_{name}": value for name, value in self.task.objective.metrics(sums).items()},
            # In fp16 the norm may be infinite, which JSON does not allow.
            "grad_norm": float(self.grad_norm) if self.grad_norm.isfinite() else None,
            "learning_rate": self.scheduler.get_last_lr()[0],
            "train_samples_per_second": self.interval_rows / (progress.seconds - self.interval_start),
        }
        self._log(entry)
        self._start_interval([])
        return entry

    def _epochs_done(self) -> float:
        return self.progress.epoch + self.progress.batch / self.sampler.batches_per_epoch

    def _save_checkpoint(self) -> Path:
        """Write the checkpoint of this step, unless it already exists."""
        if self.newest_checkpoint is not None and self.newest_checkpoint.name == f"checkpoint-{self.progress.step}":
            return self.newest_checkpoint
        sums = self._reduce_interval_sums()
        progress = replace(self.progress, scheduler=self.scheduler.state_dict(), interval_sums=sums)
        if self.accelerator.is_main_process:  # a resumed run does not write these lines again
            flush_to_disk(self.output_dir / METRICS)
            for tracker in self.accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.writer.flush()
        limit = self.arguments.save_total_limit
        self.newest_checkpoint = save_checkpoint(self.accelerator, progress, self.output_dir, limit)
        self.clock = time.perf_counter()  # saving is not training time
        return self.newest_checkpoint

    def _stop_if_requested(self, request: StopRequest) -> None:
        signum = request.received()
        if not signum:
            return
        checkpoint = self._save_checkpoint()
        message = (
            f"stopped by {signal.Signals(signum).name} after step {self.progress.step}; {checkpoint} is written: "
            "resume with resume_from_checkpoint auto"
        )
        raise Stopped(message if self.accelerator.is_main_process else "", signum)

    def _evaluate_epoch(self) -> None:
        """Evaluate, and save the model if it is the best so far."""
        progress = self.progress
        metrics, details = self.task.evaluate()
        if not all(map(math.isfinite, metrics.values())):
            raise BertSnliError(f"the metrics after step {progress.step} are not finite; {DIVERGENCE_REMEDY}")
        train_metrics = self.task.objective.metrics(progress.epoch_sums)
        entry = {
            "step": progress.step,
            "epoch": self._epochs_done(),
            **{f"train_{name}": value for name, value in train_metrics.items()},
            "train_seconds": progress.seconds,
            **{f"eval_{name}": value for name, value in metrics.items()},
        }
        progress.epochs.append(entry)
        self._log(entry)
        if self.accelerator.is_main_process:
            names = [f"{part}_{metric}" for part in ("train", "eval") for metric in self.task.objective.main_metrics]
            values = ", ".join(f"{name.replace('_', ' ')} {entry[name]:.3f}" for name in names)
            logger.info("Epoch %d: %s", progress.epoch + 1, values)
        score = self.task.objective.score(metrics)
        is_best = progress.best_score is None or score > progress.best_score
        if is_best:
            progress.best_score = score
        if is_best or not self.arguments.load_best_model_at_end:
            progress.saved_model = {"step": progress.step, **details}
            if self.accelerator.is_main_process:
                with atomic_folder(self.output_dir, overwrite=True) as folder:
                    self.task.model.save_pretrained(folder)
                    self.task.tokenizer.save_pretrained(folder)
            self.accelerator.wait_for_everyone()
        progress.epoch, progress.batch, progress.epoch_sums = progress.epoch + 1, 0, []
        self.clock = time.perf_counter()  # the evaluation is not training time

    def _log(self, entry: dict[str, Any]) -> None:
        self.progress.num_metrics_lines += 1
        if self.accelerator.is_main_process:
            append_metrics(self.output_dir, entry)
        self.accelerator.log(tracker_metrics(entry), step=entry["step"])
