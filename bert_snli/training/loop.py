"""The training loop: global batches over any number of processes, evaluated after each epoch."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from bert_snli.data.batching import GlobalBatchSampler, PaddedPairs
from bert_snli.errors import BertSnliError
from bert_snli.training.checkpointing import Progress, save_checkpoint
from bert_snli.training.objectives import Objective
from bert_snli.training.recipe import TrainingRecipe

METRICS = "metrics.jsonl"


def num_updates(recipe: TrainingRecipe, batches_per_epoch: int) -> int:
    """Updates of the whole run."""
    return recipe.max_steps if recipe.max_steps > 0 else recipe.num_train_epochs * batches_per_epoch


@dataclass
class TrainingLoop:
    """Everything that one run needs, prepared; `run` runs it."""

    recipe: TrainingRecipe
    objective: Objective
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    pairs: PaddedPairs
    sampler: GlobalBatchSampler
    eval_split: str  # its name, for the terminal
    evaluate: Callable[[], dict[str, float]]
    save_model: Callable[[], None]
    after_epoch: Callable[[list[dict]], None]
    progress: Progress

    def run(self) -> None:
        """Train to the last epoch or `max_steps`, evaluating, saving and logging on the way."""
        total = num_updates(self.recipe, self.sampler.batches_per_epoch)
        # A checkpoint may have been written after an epoch's last update and before its evaluation.
        while self.progress.step < total or self.progress.batch:
            self._train_epoch(total)
            self._end_epoch()

    def _train_epoch(self, total: int) -> None:
        progress, recipe = self.progress, self.recipe
        self.model.train()
        self.sampler.set_epoch(progress.epoch, first_batch=progress.batch)
        self.pairs.set_epoch(progress.epoch)
        passes = (self.pairs[piece] for piece in self.sampler)
        batches = self.sampler.global_batches()  # the short one may be anywhere
        interval = torch.zeros(self.objective.num_sums, device=self.accelerator.device)
        progress.totals = progress.totals or interval.tolist()
        started = time.perf_counter()
        bar = tqdm(
            total=len(self.pairs),
            initial=sum(map(len, batches[: progress.batch])),
            desc=f"Epoch {progress.epoch + 1}",
            unit="pair",
            disable=None if self.accelerator.is_local_main_process else True,  # None: hidden where nobody watches
        )
        while progress.batch < len(batches) and progress.step < total:
            rows = batches[progress.batch]
            interval += self._update(passes, rows)
            progress.batch += 1
            progress.step += 1
            bar.update(len(rows))
            ended = progress.batch == len(batches) or progress.step == total
            save = recipe.save_steps and progress.step % recipe.save_steps == 0
            if ended or save or progress.step % recipe.logging_steps == 0:
                figures = self.objective.figures(self._settle(interval))
                progress.seconds, started = progress.seconds + time.perf_counter() - started, time.perf_counter()
                bar.set_postfix({name: f"{value:.3f}" for name, value in figures.items()})
                self._log(
                    {
                        "step": progress.step,
                        "epoch": progress.epoch + progress.batch / self.sampler.batches_per_epoch,
                        **{f"train_{name}": value for name, value in figures.items()},
                        "learning_rate": self.scheduler.get_last_lr()[0],
                    }
                )
                interval.zero_()
            if save:
                self._save_checkpoint()
        bar.close()

    def _save_checkpoint(self) -> None:
        self.progress.scheduler = self.scheduler.state_dict()
        save_checkpoint(self.accelerator, self.progress, Path(self.recipe.output_dir), self.recipe.save_total_limit)

    def _update(self, passes: Iterator[dict[str, torch.Tensor]], rows: np.ndarray) -> torch.Tensor:
        """One update, on the global batch `rows`; returns this process's sums."""
        recipe, accelerator = self.recipe, self.accelerator
        seen = torch.zeros(self.objective.num_sums, device=accelerator.device)
        for number in range(recipe.gradient_accumulation_steps):
            last = number == recipe.gradient_accumulation_steps - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                loss, sums = self.objective(self.model, next(passes), rows)
                # DistributedDataParallel takes the mean over the processes; the batch's own mean or sum is wanted.
                accelerator.backward(loss * accelerator.num_processes)
            seen += sums
        if recipe.max_grad_norm:
            accelerator.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm)
        self.optimizer.step()
        if not accelerator.optimizer_step_was_skipped:  # the gradient overflowed in fp16
            self.scheduler.step()
        self.optimizer.zero_grad()
        return seen

    def _settle(self, interval: torch.Tensor) -> list[float]:
        """Sums over all processes of what was seen since the last line, added to the epoch's.

        Raises:
            BertSnliError: the loss is no longer a number.
        """
        sums: list[float] = self.accelerator.reduce(interval, "sum").tolist()
        self._check_finite(sums)
        self.progress.totals = [a + b for a, b in zip(self.progress.totals, sums, strict=True)]
        return sums

    def _check_finite(self, figures: Iterable[float]) -> None:
        if not all(map(math.isfinite, figures)):
            raise BertSnliError(
                f"the loss is not finite at step {self.progress.step}; lower --learning_rate, or set --max_grad_norm"
            )

    def _end_epoch(self) -> None:
        progress = self.progress
        evaluation = self.evaluate()
        self._check_finite(evaluation.values())
        entry = {
            "step": progress.step,
            "epoch": progress.epoch + progress.batch / self.sampler.batches_per_epoch,
            **{f"train_{name}": value for name, value in self.objective.figures(progress.totals).items()},
            "train_seconds": progress.seconds,
            **{f"eval_{name}": value for name, value in evaluation.items()},
        }
        progress.epochs.append(entry)
        self._log(entry)
        if self.accelerator.is_main_process:
            words = self.objective.describe(entry, self.eval_split)
            tqdm.write(f"Epoch {progress.epoch + 1}: {words}", file=sys.stderr)
        score = self.objective.score(evaluation)
        if not self.recipe.load_best_model_at_end or progress.best_score is None or score > progress.best_score:
            progress.best_score = score
            self.save_model()
        progress.epoch, progress.batch, progress.totals = progress.epoch + 1, 0, []
        if self.accelerator.is_main_process:
            self.after_epoch(progress.epochs)

    def _log(self, entry: dict) -> None:
        if self.accelerator.is_main_process:
            with (Path(self.recipe.output_dir) / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        self.accelerator.log({name: value for name, value in entry.items() if name != "step"}, step=entry["step"])
