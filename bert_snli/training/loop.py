"""The training loop: global batches over any number of processes, evaluated after each epoch."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from bert_snli.console import say
from bert_snli.data.batching import GlobalBatchSampler, MicroBatch, PaddedPairs
from bert_snli.errors import BertSnliError, Stopped
from bert_snli.files import METRICS, flush_to_disk
from bert_snli.training.arguments import BaseTrainingArguments
from bert_snli.training.checkpointing import Progress, save_checkpoint
from bert_snli.training.finite import NonFiniteDetector
from bert_snli.training.objectives import Objective
from bert_snli.training.record import write_trainer_state
from bert_snli.training.stopping import StopRequest


def num_updates(recipe: BaseTrainingArguments, batches_per_epoch: int) -> int:
    """Updates of the whole run."""
    return recipe.max_steps if recipe.max_steps > 0 else recipe.num_train_epochs * batches_per_epoch


def read_metrics(output_dir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (output_dir / METRICS).read_text(encoding="utf-8").splitlines()]


def tracker_metrics(entry: dict[str, Any]) -> dict[str, Any]:
    """A line of `metrics.jsonl` under the names that `transformers` gives to trackers: `train/loss`, `eval/loss`.

    An evaluation is its own figures alone: means over the epoch have no place among those of its batches.
    """
    if "eval_loss" in entry:
        return {
            f"eval/{name.removeprefix('eval_')}": value for name, value in entry.items() if name.startswith("eval_")
        }
    return {f"train/{name.removeprefix('train_')}": value for name, value in entry.items() if name != "step"}


class Evaluation(NamedTuple):
    """The figures of an evaluation, and what is no single number but kept of the best model."""

    figures: dict[str, float]
    details: dict[str, Any]


@dataclass
class TrainingLoop:
    """Everything that one run needs, prepared; `run` runs it."""

    recipe: BaseTrainingArguments
    objective: Objective
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    pairs: PaddedPairs
    sampler: GlobalBatchSampler
    eval_split: str  # its name, for the terminal
    evaluate: Callable[[], Evaluation]
    save_model: Callable[[], None]
    plot: Callable[[list[dict], str, Path], None]  # metrics.jsonl's lines, eval_split, output folder
    progress: Progress

    def __post_init__(self):
        recipe = self.recipe
        on_cpu = self.accelerator.device.type == "cpu"
        resumed = recipe.resume_from_checkpoint
        self.saved = Path(resumed) if resumed else None  # the newest checkpoint
        self.watch = NonFiniteDetector(
            self._loss_of,
            Path(recipe.output_dir),
            at_once=on_cpu or recipe.detect_anomalies,
            detect_anomalies=recipe.detect_anomalies,
        )

    def run(self) -> None:
        """Train to the last epoch or `max_steps`, evaluating, saving and logging on the way.

        The curve is drawn once, at the end or when a signal stops the run.

        Raises:
            Stopped: by a signal, after a checkpoint.
        """
        try:
            self._train()
        except (Stopped, BertSnliError):
            try:
                self._draw()
            except Exception as error:  # must not hide why the run ended
                say(f"the curve cannot be drawn: {error}")
            raise
        self._draw()

    def _train(self) -> None:
        total = num_updates(self.recipe, self.sampler.batches_per_epoch)
        with StopRequest(self.accelerator.num_processes) as request:
            # A checkpoint may have been written after an epoch's last update and before its evaluation.
            while (self.progress.step < total and not self._out_of_patience()) or self.progress.batch:
                self._train_epoch(total, request)
                self._end_epoch()
                signum = request.agreed(now=True)
                if signum and self.progress.step < total and not self._out_of_patience():
                    self._stop(signum)

    def _out_of_patience(self) -> bool:
        patience = self.recipe.early_stopping_patience
        return patience is not None and self.progress.since_best >= patience

    def _train_epoch(self, total: int, request: StopRequest) -> None:
        progress, recipe = self.progress, self.recipe
        self.model.train()
        self.sampler.set_epoch(progress.epoch, first_batch=progress.batch)
        self.pairs.set_epoch(progress.epoch)
        passes = (self.pairs[micro_batch] for micro_batch in self.sampler)
        batches = self.sampler.global_batches()  # the short one may be anywhere
        self._begin_interval()
        self.clock = time.perf_counter()
        bar = tqdm(
            total=len(self.pairs),
            initial=sum(map(len, batches[: progress.batch])),
            desc=f"Epoch {progress.epoch + 1}",
            unit="pair",
            disable=None if self.accelerator.is_local_main_process else True,  # None: hidden where nobody watches
        )
        while progress.batch < len(batches) and progress.step < total:
            rows = batches[progress.batch]
            self.interval += self._update(passes, rows)
            self.interval_rows += len(rows)
            progress.batch += 1
            progress.step += 1
            bar.update(len(rows))
            ended = progress.batch == len(batches) or progress.step == total
            if ended or progress.step % recipe.logging_steps == 0:
                figures = self._end_interval()
                bar.set_postfix({name: f"{value:.3f}" for name, value in figures.items()})
            if recipe.save_steps and progress.step % recipe.save_steps == 0:
                self._save_checkpoint()
            if signum := request.agreed(now=ended):
                bar.close()
                self._stop(signum)
        bar.close()

    def _add_seconds(self) -> None:
        """Add the time since the last call to the training time. Call it when the device has finished its work."""
        now = time.perf_counter()
        self.progress.seconds, self.clock = self.progress.seconds + now - self.clock, now

    def _begin_interval(self) -> None:
        """Begin to sum up for the next line of metrics; go on with the sums that a checkpoint holds."""
        accelerator, sums_of_each = self.accelerator, self.progress.interval
        if len(sums_of_each) != accelerator.num_processes:  # then only their sum counts
            total = np.sum(sums_of_each, axis=0).tolist() if sums_of_each else [0.0] * self.objective.num_sums
            sums_of_each = [total, *([[0.0] * len(total)] * (accelerator.num_processes - 1))]
        self.interval = torch.tensor(sums_of_each[accelerator.process_index], device=accelerator.device)
        self.interval_rows, self.interval_begun = 0, self.progress.seconds
        self.progress.interval = []

    def _end_interval(self) -> dict[str, float]:
        """Write a line of metrics on the updates since the last; returns the figures of their batches."""
        self.watch.check()
        progress = self.progress
        sums: list[float] = self.accelerator.reduce(self.interval, "sum").tolist()  # waits for the device
        self._add_seconds()
        progress.totals = [a + b for a, b in zip(progress.totals or [0.0] * len(sums), sums, strict=True)]
        figures = self.objective.figures(sums)
        self._log(
            {
                "step": progress.step,
                "epoch": progress.epoch + progress.batch / self.sampler.batches_per_epoch,
                **{f"train_{name}": value for name, value in figures.items()},
                # In fp16 it may overflow, and JSON knows no infinity.
                "grad_norm": float(self.grad_norm) if self.grad_norm.isfinite() else None,
                "learning_rate": self.scheduler.get_last_lr()[0],
                "train_samples_per_second": self.interval_rows / (progress.seconds - self.interval_begun),
            }
        )
        self._begin_interval()
        return figures

    def _save_checkpoint(self) -> Path:
        """The checkpoint of this step; one that was written before the evaluation will do, which is then done anew."""
        if self.saved is not None and self.saved.name == f"checkpoint-{self.progress.step}":
            return self.saved
        self.watch.check()
        interval = self.accelerator.gather(self.interval[None]).tolist()  # waits for the device
        self._add_seconds()
        standing = replace(self.progress, scheduler=self.scheduler.state_dict(), interval=interval)
        if self.accelerator.is_main_process:  # what the checkpoint takes as said must be on the disk with it
            flush_to_disk(Path(self.recipe.output_dir) / METRICS)
            for tracker in self.accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.writer.flush()
        output_dir = Path(self.recipe.output_dir)
        self.saved = save_checkpoint(self.accelerator, standing, output_dir, self.recipe.save_total_limit)
        self.clock = time.perf_counter()  # the time of saving is not training time
        return self.saved

    def _stop(self, signum: int) -> None:
        checkpoint = self._save_checkpoint()
        message = (
            f"stopped by {signal.Signals(signum).name} after step {self.progress.step}; {checkpoint} is written: "
            "go on with the same command and --resume_from_checkpoint auto"
        )
        raise Stopped(message if self.accelerator.is_main_process else "", signum)

    def _update(self, passes: Iterator[dict[str, torch.Tensor]], rows: np.ndarray) -> torch.Tensor:
        """One update, on the global batch `rows`; returns this process's sums."""
        recipe, accelerator = self.recipe, self.accelerator
        seen = torch.zeros(self.objective.num_sums, device=accelerator.device)
        for number in range(recipe.num_micro_batches):
            last = number == recipe.num_micro_batches - 1
            with nullcontext() if last else accelerator.no_sync(self.model), self.watch.anomalies():
                loss, sums = self.objective(self.model, next(passes), rows)
                self.watch.add("loss", loss, rows, self.progress)
                # DistributedDataParallel takes the mean over the processes; the batch's own mean or sum is wanted.
                accelerator.backward(loss * accelerator.num_processes)
            seen += sums
        self.grad_norm = accelerator.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm or math.inf)
        if accelerator.scaler is None:  # for fp16, an overflow is what its scaler is there for
            self.watch.add("gradient", self.grad_norm, rows, self.progress)
        self.optimizer.step()
        # The learning rate depends on the number of the update only. It also moves on after an fp16 overflow, when the
        # optimizer skips the update: with fused AdamW, the host would have to wait for the GPU to know of that.
        self.scheduler.step()
        self.optimizer.zero_grad()
        return seen

    @torch.no_grad()
    def _loss_of(self, row: int) -> torch.Tensor:
        model = self.accelerator.unwrap_model(self.model).eval()
        return self.objective(model, self.pairs[MicroBatch([row], has_labels=True)], np.array([row]))[0]

    def _end_epoch(self) -> None:
        progress, recipe = self.progress, self.recipe
        figures, details = self.evaluate()
        if not all(map(math.isfinite, figures.values())):
            raise BertSnliError(
                f"the evaluation after step {progress.step} is not finite; lower --learning_rate, or set "
                "--max_grad_norm"
            )
        entry = {
            "step": progress.step,
            "epoch": progress.epoch + progress.batch / self.sampler.batches_per_epoch,
            **{f"train_{name}": value for name, value in self.objective.figures(progress.totals).items()},
            "train_seconds": progress.seconds,
            **{f"eval_{name}": value for name, value in figures.items()},
        }
        progress.epochs.append(entry)
        self._log(entry)
        if self.accelerator.is_main_process:
            words = self.objective.describe(entry, self.eval_split)
            tqdm.write(f"Epoch {progress.epoch + 1}: {words}", file=sys.stderr)
        score = self.objective.score(figures)
        better = progress.best_score is None or score > progress.best_score
        progress.since_best = 0 if better else progress.since_best + 1
        if better:
            progress.best_score, progress.best_step = score, progress.step
        if better or not recipe.load_best_model_at_end:
            progress.kept = {"step": progress.step, **details}
            self.save_model()
        progress.epoch, progress.batch, progress.totals = progress.epoch + 1, 0, []
        self.clock = time.perf_counter()  # the time of evaluating is not training time

    def _draw(self) -> None:
        """Draw the curve and write the history as other tools read it, if there has been an evaluation."""
        if not self.accelerator.is_main_process or not self.progress.epochs:
            return
        output_dir = Path(self.recipe.output_dir)
        entries = read_metrics(output_dir)
        self.plot(entries, self.eval_split, output_dir)
        write_trainer_state(
            output_dir,
            self.recipe,
            entries,
            max_steps=num_updates(self.recipe, self.sampler.batches_per_epoch),
            best=next(entry for entry in entries if "eval_loss" in entry and entry["step"] == self.progress.best_step),
            metric=self.objective.metric,
        )

    def _log(self, entry: dict) -> None:
        if self.accelerator.is_main_process:
            with (Path(self.recipe.output_dir) / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        self.accelerator.log(tracker_metrics(entry), step=entry["step"])
