"""Checkpoints of a run in progress: `checkpoint-N` folders from which training goes on as if it had not stopped.

A checkpoint is written beside its place, with the checksums of its files, flushed to the disk, and renamed when it is
whole. One that is torn or damaged all the same is told by its checksums, and the one before it is used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from bert_snli.console import is_lost_connection
from bert_snli.errors import BertSnliError
from bert_snli.files import flush_to_disk, replace_file, sha256_of_file

PROGRESS, CHECKSUMS = "progress.json", "checksums.json"
MODEL, KEPT = "model.safetensors", "kept.safetensors"  # in the output folder; its copy in a checkpoint


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0  # epochs finished
    batch: int = 0  # updates made in the running epoch
    step: int = 0  # updates made in all
    best_score: float | None = None  # of the evaluations so far
    best_step: int = 0  # of that evaluation
    since_best: int = 0  # evaluations that were not better
    seconds: float = 0.0  # spent on training, evaluation left out
    totals: list[float] = field(default_factory=list)  # the objective's sums over the running epoch
    interval: list[list[float]] = field(default_factory=list)  # each process's sums since the last line of metrics
    epochs: list[dict] = field(default_factory=list)  # metrics of the finished epochs
    kept: dict[str, Any] = field(default_factory=dict)  # what else is known of the model in the output folder
    scheduler: dict = field(default_factory=dict)  # its state
    options: dict = field(default_factory=dict)  # those that the weights depend on
    means: dict = field(default_factory=dict)  # what they depend on to rounding: processes, passes, precision
    data: str = ""  # fingerprint of the pairs and the vocabulary


def save_checkpoint(accelerator: Accelerator, progress: Progress, output_dir: Path, limit: int) -> Path:
    """Write `checkpoint-{step}`, and drop the oldest beyond `limit`; returns its folder.

    Raises:
        BertSnliError: it cannot be written; the ones before are still there.
    """
    target = output_dir / f"checkpoint-{progress.step}"
    temporary = output_dir / f".{target.name}.partial"
    with _whole_or_not_at_all(temporary, target):
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if progress.best_score is not None:
                shutil.copyfile(output_dir / MODEL, temporary / KEPT)
            (temporary / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
            checksums = {path.name: sha256_of_file(path) for path in sorted(temporary.iterdir())}
            (temporary / CHECKSUMS).write_text(json.dumps(checksums, indent=2) + "\n", encoding="utf-8")
            for path in (*temporary.iterdir(), temporary):
                flush_to_disk(path)
            shutil.rmtree(target, ignore_errors=True)
            os.rename(temporary, target)
            flush_to_disk(output_dir)
            for old in list_checkpoints(output_dir)[:-limit]:
                shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    return target


@contextmanager
def _whole_or_not_at_all(temporary: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_lost_connection(error):  # of the process that found that it cannot, and says so
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        reason = " ".join(str(error).split())[:200]
        before = list_checkpoints(target.parent)
        remedy = f"then go on from {before[-1].name} with --resume_from_checkpoint auto" if before else "and start anew"
        raise BertSnliError(f"{target}: cannot be written ({reason}); make room, {remedy}") from error


def find_damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, in words; nothing if they are what was written."""
    try:
        checksums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        if not isinstance(checksums, dict) or PROGRESS not in checksums:
            return f"{CHECKSUMS} names no files"
        for name, sha256 in checksums.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if sha256_of_file(folder / name) != sha256:
                return f"{name} is not what was written"
        step = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))["step"]
        if folder.name != f"checkpoint-{step}":
            return f"it is checkpoint-{step}, renamed"
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS} or a file of its list cannot be read: {' '.join(str(error).split())[:100]}"
    return None


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints in `output_dir`, whole or damaged since, oldest first."""
    numbered = [
        (int(match[1]), path)
        for path in output_dir.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(numbered)]


def check_place(folder: Path, output_dir: Path) -> None:
    """Refuse to resume from what is no checkpoint in the output folder.

    Raises:
        BertSnliError: with the remedy.
    """
    if not (folder / PROGRESS).is_file():
        raise BertSnliError(
            f"--resume_from_checkpoint {folder}: no checkpoint there; give a checkpoint-N folder, or 'auto'"
        )
    if folder.resolve().parent != output_dir.resolve():
        raise BertSnliError(
            f"--resume_from_checkpoint {folder}: is not in {output_dir}, where its run is; "
            f"give --output_dir {folder.parent}"
        )


def find_sound_checkpoint(wanted: str, output_dir: Path, warn: Callable[[str], None]) -> Path | None:
    """The folder that `--resume_from_checkpoint` means; for 'auto' the newest that is whole, or nothing where none is.

    Args:
        warn: is told of each damaged one that is passed over.

    Raises:
        BertSnliError: the one that is meant is damaged, or all are.
    """
    candidates = [Path(wanted)] if wanted != "auto" else list_checkpoints(output_dir)[::-1]
    damaged: list[str] = []
    for folder in candidates:
        damage = find_damage(folder)
        if damage is None:
            if damaged:
                warn(f"{'; '.join(damaged)}; going on from {folder.name}")
            return folder
        damaged.append(f"{folder}: damaged ({damage})")
    if damaged:
        remedy = (
            "give 'auto' or an older one"
            if wanted != "auto"
            else "start anew: --overwrite_output_dir without this option"
        )
        raise BertSnliError(f"--resume_from_checkpoint {'; '.join(damaged)}; {remedy}")
    return None


def load_checkpoint(accelerator: Accelerator, folder: Path, options: dict, data: str) -> Progress:
    """Put model, optimizer and random states back as they were in `folder`.

    Raises:
        BertSnliError: it is one of a run with other `options` or `data`, or does not fit the model.
    """
    progress = read_progress(folder)
    changed = {name for name in options.keys() | progress.options if options.get(name) != progress.options.get(name)}
    if changed:
        name = min(changed)
        raise BertSnliError(
            f"--resume_from_checkpoint {folder}: was made with --{name} {progress.options.get(name)}, "
            f"not {options.get(name)}; resume with the same recipe"
        )
    if progress.data != data:
        raise BertSnliError(
            f"--resume_from_checkpoint {folder}: was made of other pairs, labels or words; resume with what "
            "it was made of"
        )
    with _resuming_from(folder):
        accelerator.load_state(str(folder))
    return progress


def read_progress(folder: Path) -> Progress:
    """Where the run stood when `folder` was written.

    Raises:
        BertSnliError: it is not a checkpoint.
    """
    with _resuming_from(folder):
        return Progress(**json.loads((folder / PROGRESS).read_text(encoding="utf-8")))


@contextmanager
def _resuming_from(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BertSnliError(
            f"--resume_from_checkpoint {folder}: cannot be resumed from ({reason}); "
            "give a checkpoint-N folder of a run with the same recipe"
        ) from error


def restore_output_dir(output_dir: Path, step: int) -> list[str]:
    """Make `output_dir` what it was when its checkpoint of `step` was written; 0: when there was none yet.

    Returns the names of the checkpoints that went.

    Later checkpoints, of an earlier run or damaged ones, would be taken for newer ones of this; what a killed run left
    half-written goes, and the model that was kept by then comes back.
    """
    later = [folder for folder in list_checkpoints(output_dir) if int(folder.name.split("-")[1]) > step]
    for folder in later:
        shutil.rmtree(folder)
    for rest in (*output_dir.glob(".checkpoint-*.partial"), *output_dir.glob(".partial-*")):
        shutil.rmtree(rest, ignore_errors=True)
    for half in output_dir.glob(".*.partial"):
        half.unlink()
    kept = output_dir / f"checkpoint-{step}" / KEPT
    if kept.is_file():
        with replace_file(output_dir / MODEL) as temporary:
            shutil.copyfile(kept, temporary)
    return [folder.name for folder in later]
