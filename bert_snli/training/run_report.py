"""One page on a finished run, `report.md`, with its pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_snli.evaluation.plots import plot_confusion_matrix, plot_training_progress
from bert_snli.training.record import read_origin

RUN_REPORT, TRAINING_PLOT, CONFUSION = "report.md", "course.png", "confusion_matrix.png"


def write_run_report(
    output_dir: Path, results: dict[str, Any], entries: Sequence[dict[str, Any]], kept: dict[str, Any]
) -> None:
    """`report.md`, `course.png` and, of a classifier, `confusion_matrix.png`.

    Args:
        results: what `train_results.json` holds.
        entries: the lines of `metrics.jsonl`.
        kept: what is known of the model that was kept besides its figures.
    """
    origin = read_origin(output_dir)
    plot_training_progress([entry for entry in entries if "eval_loss" not in entry], output_dir / TRAINING_PLOT)
    pictures = ["![Curve](curve.png)", f"![Learning rate, gradient, throughput]({TRAINING_PLOT})"]
    if "confusion_matrix" in kept:
        title = f"{results['eval_split']}, {results['eval_accuracy']:.1%} right"
        plot_confusion_matrix(kept["confusion_matrix"], title, output_dir / CONFUSION)
        pictures.append(f"![Confusion matrix of the model that was kept]({CONFUSION})")
    text = "\n\n".join(
        [
            f"# {output_dir.name}",
            _summary(results, origin),
            _evaluations([entry for entry in entries if "eval_loss" in entry], kept["step"]),
            *pictures,
            "## Where it comes from",
            _origin(origin),
            _repeat(results["num_processes"]),
        ]
    )
    (output_dir / RUN_REPORT).write_text(text + "\n", encoding="utf-8")


def _repeat(num_processes: int) -> str:
    launch = f" --num_processes {num_processes}" * (num_processes > 1)
    return f"`recipe.yaml` holds every option: `--config recipe.yaml --output_dir ANOTHER{launch}` repeats the run."


def _summary(results: dict[str, Any], origin: dict[str, Any]) -> str:
    minutes, seconds = divmod(round(results["train_runtime"]), 60)
    source = origin.get("train_file") or origin["dataset_name_or_path"]  # older runs do not say the first
    return (
        f"`{origin['model_name_or_path'] or 'fresh weights'}` trained on {results['train_samples']:,} pairs of "
        f"`{source}`: {results['train_steps']:,} steps in {minutes} min {seconds} s, "
        f"{results['train_samples_per_second']:,.0f} pairs/s on {results['num_processes']} process(es) of "
        f"{results['device']}, precision {results['mixed_precision']}. The model of epoch {results['kept_epoch']:g} "
        "was kept."
    )


def _evaluations(entries: Sequence[dict[str, Any]], kept_step: int) -> str:
    """A table of all evaluations; the kept one is marked."""
    names = [name for name in entries[0] if name.startswith(("train_", "eval_")) and name != "train_seconds"]
    lines = ["| epoch | step | " + " | ".join(name.replace("_", " ") for name in names) + " |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for entry in entries:
        figures = " | ".join(f"{entry[name]:.4f}" for name in names)
        mark = " (kept)" if entry["step"] == kept_step else ""
        lines.append(f"| {entry['epoch']:g}{mark} | {entry['step']:,} | {figures} |")
    return "\n".join(lines)


def _origin(origin: dict[str, Any]) -> str:
    rows = {
        "started": origin["started"],
        "resumed": ", ".join(f"{entry['started']} from step {entry['step']}" for entry in origin["resumed"]),
        "commit": origin["git_commit"],
        "start weights (SHA-256)": origin["model_sha256"],
        "training pairs and vocabulary (SHA-256)": origin["data_fingerprint"],
        "machine": origin["machine"]["platform"],
        "versions": ", ".join(f"{name} {number}" for name, number in origin["versions"].items() if number),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value)])
