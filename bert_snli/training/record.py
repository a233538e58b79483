"""What a run leaves: where it came from (`run.json`), and its history as `transformers` writes it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import uuid
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from transformers import TrainerState

from bert_snli.files import sha256_of_file, write_atomically
from bert_snli.training.arguments import BaseTrainingArguments
from bert_snli.training.checkpointing import MODEL

RUN, TRAINER_STATE = "run.json", "trainer_state.json"
LIBRARIES = ("bert-snli", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy", "safetensors")
REPOSITORY = Path(__file__).resolve().parents[2]


def describe_origin(recipe: BaseTrainingArguments, data: str, machine: dict[str, Any]) -> dict[str, Any]:
    """Versions, commit, and what was trained on, from and with, for `run.json`.

    Args:
        data: fingerprint of the training pairs and the vocabulary.
        machine: what is known of devices, processes and precision.
    """
    start = Path(recipe.model_name_or_path or ".") / MODEL
    return {
        "id": re.sub(r"[^\w.-]", "-", Path(recipe.output_dir).name) + f"-{uuid.uuid4().hex[:8]}",
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model_name_or_path": recipe.model_name_or_path or None,
        "model_sha256": sha256_of_file(start) if recipe.model_name_or_path and start.is_file() else None,
        "dataset_name_or_path": recipe.dataset_name_or_path,
        "train_file": getattr(recipe, "train_file", None),
        "data_fingerprint": data,
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "machine": {"platform": platform.platform(), **machine},
        "resumed": [],
    }


def version(library: str) -> str | None:
    """The installed version, if it is installed."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit that this code is, with `+changes` where files differ from it; nothing if it is no checkout of git."""

    def ask(*words: str) -> str:
        answer = subprocess.run(["git", "-C", str(REPOSITORY), *words], capture_output=True, text=True, timeout=10)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    try:
        if not (REPOSITORY / ".git").exists():  # else an outer repository would answer
            return None
        commit = ask("rev-parse", "HEAD")
        changed = ask("status", "--porcelain", "--untracked-files=no")
        return f"{commit}+changes" if commit and changed else commit or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def write_origin(output_dir: Path, origin: dict[str, Any], resumed_at: int) -> None:
    """`run.json` of a run that begins, or an entry more in it where one is resumed."""
    path = output_dir / RUN
    if resumed_at and path.is_file():
        first = read_origin(output_dir)
        again = {name: origin[name] for name in ("started", "git_commit", "versions", "machine")}
        origin = {**first, "resumed": [*first["resumed"], {"step": resumed_at, **again}]}
    write_atomically(path, json.dumps(origin, indent=2) + "\n")


def read_origin(output_dir: Path) -> dict[str, Any]:
    """What `run.json` holds."""
    return json.loads((output_dir / RUN).read_text(encoding="utf-8"))


def write_trainer_state(
    output_dir: Path, recipe: BaseTrainingArguments, entries: Sequence[dict], *, max_steps: int, best: dict, metric: str
) -> None:
    """`trainer_state.json`, as `transformers.Trainer` writes it, from the lines of `metrics.jsonl`.

    Args:
        best: the line of the best evaluation, and `metric` the name of what it was chosen by.
    """
    state = TrainerState(
        epoch=entries[-1]["epoch"],
        global_step=entries[-1]["step"],
        max_steps=max_steps,
        num_train_epochs=recipe.num_train_epochs,
        logging_steps=recipe.logging_steps,
        save_steps=recipe.save_steps,
        train_batch_size=recipe.train_batch_size,
        log_history=[_as_the_trainer_logs(entry) for entry in entries],
        best_metric=best[f"eval_{metric}"],
        best_global_step=best["step"],
        best_model_checkpoint=str(output_dir),
    )
    state.save_to_json(str(output_dir / TRAINER_STATE))


def _as_the_trainer_logs(entry: dict) -> dict:
    """`loss` for `train_loss` while training; the evaluation's own figures alone after it."""
    if "eval_loss" in entry:
        return {name: value for name, value in entry.items() if not name.startswith("train_")}
    return {name.removeprefix("train_"): value for name, value in entry.items()}
