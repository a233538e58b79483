"""Write and load `checkpoint-N` folders, from which training resumes bit-exactly.

A checkpoint is written under a temporary name with the checksums of its files, flushed to the disk, and renamed when
it is complete. Resume compares the checksums, and skips a damaged checkpoint if there is an older one.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from bert_snli.console import is_lost_connection
from bert_snli.errors import BertSnliError, one_line
from bert_snli.files import WEIGHTS, flush_to_disk, replace_file, sha256_of_file

PROGRESS, CHECKSUMS = "progress.json", "checksums.json"
SAVED_WEIGHTS = "saved_model.safetensors"  # in a checkpoint: a copy of the weights in the output folder
logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """The state of a run, apart from the model, the optimizer and the random states."""

    epoch: int = 0  # number of finished epochs
    batch: int = 0  # number of updates in the current epoch
    step: int = 0  # number of updates
    num_metrics_lines: int = 0  # number of lines in metrics.jsonl
    best_score: float | None = None
    seconds: float = 0.0  # training time without evaluation and saving
    epoch_sums: list[float] = field(default_factory=list)  # sums of the objective up to the last line of metrics
    interval_sums: list[float] = field(default_factory=list)  # sums since the last line of metrics
    epochs: list[dict[str, Any]] = field(default_factory=list)  # metrics of the finished epochs
    saved_model: dict[str, Any] = field(default_factory=dict)  # step and evaluation details of the saved model
    scheduler: dict[str, Any] = field(default_factory=dict)  # state of the learning rate schedule
    settings: dict[str, Any] = field(default_factory=dict)  # options and machine that affect the weights
    data_fingerprint: str = ""


def save_checkpoint(accelerator: Accelerator, progress: Progress, output_dir: Path, limit: int) -> Path:
    """Write `checkpoint-{step}` and delete the oldest checkpoints beyond `limit`. Return the checkpoint's folder."""
    target = output_dir / f"checkpoint-{progress.step}"
    temporary = output_dir / f".{target.name}.partial"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if progress.best_score is not None:
                shutil.copyfile(output_dir / WEIGHTS, temporary / SAVED_WEIGHTS)
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
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_lost_connection(error):  # the process that failed to write reports the cause
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        earlier = list_checkpoints(output_dir)
        remedy = f"resume from {earlier[-1].name} with resume_from_checkpoint auto" if earlier else "start again"
        raise BertSnliError(f"{target}: cannot be written ({one_line(error)}); free disk space and {remedy}") from error
    accelerator.wait_for_everyone()
    return target


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the checkpoint folders in `output_dir`, valid or damaged, oldest first."""
    folders = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in folders if path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint, from the name of its folder."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def describe_damage(folder: Path) -> str | None:
    """Return a description of the damage to a checkpoint, or None if all its files are intact."""
    try:
        checksums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        if not isinstance(checksums, dict) or PROGRESS not in checksums:
            return f"{CHECKSUMS} lists no files"
        for name, sha256 in checksums.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if sha256_of_file(folder / name) != sha256:
                return f"the checksum of {name} is wrong"
        step = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))["step"]
        return None if folder.name == f"checkpoint-{step}" else f"it was written as checkpoint-{step} and renamed"
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS} or a file in it cannot be read: {one_line(error)}"


def check_checkpoint_folder(folder: Path, output_dir: Path) -> None:
    """Check that `folder` is a checkpoint in the output folder."""
    if not (folder / PROGRESS).is_file():
        raise BertSnliError(f"resume_from_checkpoint {folder}: not a checkpoint; give a checkpoint-N folder or 'auto'")
    if folder.resolve().parent != output_dir.resolve():
        raise BertSnliError(f"resume_from_checkpoint {folder}: is not in {output_dir}; give a checkpoint from there")


def find_valid_checkpoint(requested: str, output_dir: Path) -> Path | None:
    """Return the checkpoint to resume from. With 'auto', return the newest valid one, or None if there is none."""
    is_auto = requested == "auto"
    damaged: list[str] = []
    for folder in list_checkpoints(output_dir)[::-1] if is_auto else [Path(requested)]:
        damage = describe_damage(folder)
        if damage is None:
            if damaged:
                logger.warning("%s; resuming from %s", "; ".join(damaged), folder.name)
            return folder
        damaged.append(f"{folder}: damaged ({damage})")
    if damaged:
        remedy = "set overwrite_output_dir to start again" if is_auto else "give 'auto' or an older checkpoint"
        raise BertSnliError(f"resume_from_checkpoint {'; '.join(damaged)}; {remedy}")
    return None


def read_progress(folder: Path) -> Progress:
    """Read the progress that is stored in a checkpoint."""
    with explain_unreadable(folder):
        return Progress(**json.loads((folder / PROGRESS).read_text(encoding="utf-8")))


@contextmanager
def explain_unreadable(folder: Path) -> Iterator[None]:
    """Turn errors of reading a checkpoint into a `BertSnliError`."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise BertSnliError(
            f"resume_from_checkpoint {folder}: cannot be loaded ({one_line(error)}); give a checkpoint of a run with "
            "the same options and the same version of bert-snli"
        ) from error


def restore_output_dir(output_dir: Path, step: int) -> list[str]:
    """Restore the output folder to its state when the checkpoint of `step` was written. Step 0 is the start.

    Deletes later checkpoints, which `resume_from_checkpoint="auto"` would use, and returns their names. Deletes
    incomplete files. Restores the best model of the checkpoint.
    """
    later = [folder for folder in list_checkpoints(output_dir) if step_of(folder) > step]
    for folder in (*later, *output_dir.glob(".checkpoint-*.partial"), *output_dir.glob(".partial-*")):
        shutil.rmtree(folder)
    for file in output_dir.glob(".*.partial"):
        file.unlink()
    saved_weights = output_dir / f"checkpoint-{step}" / SAVED_WEIGHTS
    if saved_weights.is_file():
        with replace_file(output_dir / WEIGHTS) as temporary:
            shutil.copyfile(saved_weights, temporary)
    return [folder.name for folder in later]
