"""The files of a run: its origin (`run.json`), its metrics (`metrics.jsonl`) and a page about it (`report.md`)."""

import importlib.metadata
import json
import platform
import re
import sys
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bert_snli.evaluation.plots import plot_confusion_matrix, plot_training_progress
from bert_snli.files import METRICS, WEIGHTS, is_evaluation, sha256_of_file, write_atomically
from bert_snli.rendering import render
from bert_snli.training.arguments import BaseTrainingArguments
from bert_snli.training.checkpointing import Progress

RUN = "run.json"
LIBRARIES = ("bert-snli", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy", "safetensors")


def write_origin(
    output_dir: Path, arguments: BaseTrainingArguments, progress: Progress, machine: dict[str, Any]
) -> None:
    """Write `run.json`: versions, machine, initial weights and data. A resumed run adds an entry to the file."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    now = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions},
        "machine": {"platform": platform.platform(), **machine},
    }
    if progress.step and (output_dir / RUN).is_file():
        origin = read_origin(output_dir)
        origin["resumed"].append({"step": progress.step, **now})
    else:
        weights = Path(arguments.model_name_or_path or ".") / WEIGHTS
        is_local = bool(arguments.model_name_or_path) and weights.is_file()
        origin = {
            "id": re.sub(r"[^\w.-]", "-", output_dir.name) + f"-{uuid.uuid4().hex[:8]}",
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "model_name_or_path": arguments.model_name_or_path or None,
            "revision": arguments.revision,
            "model_sha256": sha256_of_file(weights) if is_local else None,
            "dataset_name_or_path": arguments.dataset_name_or_path,
            "train_file": getattr(arguments, "train_file", None),
            "data_fingerprint": progress.data_fingerprint,
            **now,
            "resumed": [],
        }
    write_atomically(output_dir / RUN, json.dumps(origin, indent=2) + "\n")


def read_origin(output_dir: Path) -> dict[str, Any]:
    """Read `run.json`."""
    return json.loads((output_dir / RUN).read_text(encoding="utf-8"))


def read_metrics(output_dir: Path) -> list[dict[str, Any]]:
    """Read the lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (output_dir / METRICS).read_text(encoding="utf-8").splitlines()]


def append_metrics(output_dir: Path, entry: dict[str, Any]) -> None:
    """Append a line to `metrics.jsonl`."""
    with (output_dir / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def restore_metrics(output_dir: Path, num_lines: int) -> None:
    """Keep only the first `num_lines` lines of `metrics.jsonl`."""
    path = output_dir / METRICS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    write_atomically(path, "".join(lines[:num_lines]))


def tracker_metrics(entry: dict[str, Any]) -> dict[str, Any]:
    """Rename the metrics in a line of `metrics.jsonl` as `transformers` does for trackers: `train/loss`, `eval/loss`.

    The training metrics of an evaluation line are left out, because they are means over the epoch.
    """
    prefix = "eval_" if is_evaluation(entry) else "train_"
    return {
        f"{prefix[:-1]}/{name.removeprefix(prefix)}": value
        for name, value in entry.items()
        if name.startswith("eval_") or (prefix == "train_" and name != "step")
    }


def write_report(output_dir: Path, results: dict[str, Any], progress: Progress) -> None:
    """Write `report.md`, a plot of the training and, for a classifier, its confusion matrix.

    `results` is the content of `train_results.json`.
    """
    updates = [entry for entry in read_metrics(output_dir) if not is_evaluation(entry)]
    plot_training_progress(updates, output_dir / "training.png")
    if confusion_matrix := progress.saved_model.get("confusion_matrix"):
        title = f"{results['eval_split']}: accuracy {results['eval_accuracy']:.1%}"
        plot_confusion_matrix(confusion_matrix, title, output_dir / "confusion_matrix.png")
    names = [name for name in progress.epochs[0] if name.startswith(("train_", "eval_")) and name != "train_seconds"]
    page = render(
        "run_report.md",
        name=output_dir.name,
        results=results,
        origin=read_origin(output_dir),
        names=names,
        epochs=progress.epochs,
        saved_step=progress.saved_model["step"],
        has_confusion_matrix=bool(confusion_matrix),
    )
    (output_dir / "report.md").write_text(page, encoding="utf-8")
