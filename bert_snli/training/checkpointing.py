"""Checkpoints of a run in progress: `checkpoint-N` folders from which training goes on as if it had not stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError

from accelerate import Accelerator
from safetensors import SafetensorError

from bert_snli.errors import BertSnliError

PROGRESS = "progress.json"


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0  # epochs finished
    batch: int = 0  # updates made in the running epoch
    step: int = 0  # updates made in all
    best_score: float | None = None  # of the evaluations so far
    seconds: float = 0.0  # spent on training, evaluation left out
    totals: list[float] = field(default_factory=list)  # the objective's sums over the running epoch
    epochs: list[dict] = field(default_factory=list)  # metrics of the finished epochs
    scheduler: dict = field(default_factory=dict)  # its state
    batches: dict = field(default_factory=dict)  # the options that decide which rows are in which batch
    precision: str = "no"  # that was trained in
    data: str = ""  # fingerprint of the pairs and the vocabulary


def save_checkpoint(accelerator: Accelerator, progress: Progress, output_dir: Path, limit: int) -> None:
    """Write `checkpoint-{step}` beside, rename it when it is whole, and drop the oldest beyond `limit`."""
    target = output_dir / f"checkpoint-{progress.step}"
    temporary = output_dir / f".{target.name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    if accelerator.is_main_process:
        (temporary / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(target, ignore_errors=True)
        os.rename(temporary, target)
        for old in list_checkpoints(output_dir)[:-limit]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def drop_checkpoints_after(step: int, output_dir: Path) -> None:
    """Remove the checkpoints of an earlier run, which would be taken for newer ones of this."""
    for folder in list_checkpoints(output_dir):
        if int(folder.name.split("-")[1]) > step:
            shutil.rmtree(folder)


def load_checkpoint(accelerator: Accelerator, folder: Path, batches: dict, data: str) -> Progress:
    """Put model, optimizer and random states back as they were in `folder`.

    Raises:
        BertSnliError: it is not a checkpoint, or one of a run with other batches or `data`, or does not fit the model.
    """
    progress = read_progress(folder)
    changed = {name for name, value in batches.items() if progress.batches.get(name) != value}
    if changed:
        name = min(changed)
        raise BertSnliError(
            f"--resume_from_checkpoint {folder}: was made with --{name} {progress.batches.get(name)}, "
            f"not {batches[name]}; resume with the same recipe"
        )
    if progress.data != data:
        raise BertSnliError(
            f"--resume_from_checkpoint {folder}: was made of other pairs or with another vocabulary; resume with what "
            "it was made of"
        )
    with _said_plainly(folder):
        accelerator.load_state(str(folder))
    return progress


def read_progress(folder: Path) -> Progress:
    """Where the run stood when `folder` was written.

    Raises:
        BertSnliError: it is not a checkpoint.
    """
    with _said_plainly(folder):
        return Progress(**json.loads((folder / PROGRESS).read_text(encoding="utf-8")))


@contextmanager
def _said_plainly(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BertSnliError(
            f"--resume_from_checkpoint {folder}: cannot be resumed from ({reason}); "
            "give a checkpoint-N folder of a run with the same recipe"
        ) from error


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The whole checkpoints in `output_dir`, oldest first."""
    numbered = [
        (int(match[1]), path)
        for path in output_dir.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / PROGRESS).is_file()
    ]
    return [path for _, path in sorted(numbered)]


def find_checkpoint(resume_from_checkpoint: str, output_dir: Path) -> Path:
    """The folder that `--resume_from_checkpoint` means.

    Raises:
        BertSnliError: there is none.
    """
    if resume_from_checkpoint != "auto":
        folder = Path(resume_from_checkpoint)
        if not (folder / PROGRESS).is_file():
            raise BertSnliError(
                f"--resume_from_checkpoint {folder}: no checkpoint there; give a checkpoint-N folder, or 'auto'"
            )
        if folder.resolve().parent != output_dir.resolve():
            raise BertSnliError(
                f"--resume_from_checkpoint {folder}: is not in {output_dir}, where the best model so far is kept; "
                f"give --output_dir {folder.parent}"
            )
        return folder
    checkpoints = list_checkpoints(output_dir)
    if not checkpoints:
        raise BertSnliError(
            f"--resume_from_checkpoint auto: no checkpoint in {output_dir}; start without it, with --save_steps"
        )
    return checkpoints[-1]
