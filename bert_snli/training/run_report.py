"""`report.md`: one page about a finished run, with its plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_snli.evaluation.plots import plot_confusion_matrix, plot_training_progress
from bert_snli.training.checkpointing import Progress
from bert_snli.training.run_folder import read_metrics, read_origin

RUN_REPORT, TRAINING_PLOT, CONFUSION_MATRIX = "report.md", "training.png", "confusion_matrix.png"


def write_run_report(output_dir: Path, results: dict[str, Any], progress: Progress) -> None:
    """Write `report.md`, a plot of the training and, for a classifier, its confusion matrix.

    Args:
        output_dir: the folder of the run.
        results: the content of `train_results.json`.
        progress: the state of the run.
    """
    origin, entries = read_origin(output_dir), read_metrics(output_dir)
    plot_training_progress([entry for entry in entries if "eval_loss" not in entry], output_dir / TRAINING_PLOT)
    plots = ["![Training curve](curve.png)", f"![Learning rate, gradient norm and throughput]({TRAINING_PLOT})"]
    if "confusion_matrix" in progress.saved_model:
        title = f"{results['eval_split']}: accuracy {results['eval_accuracy']:.1%}"
        plot_confusion_matrix(progress.saved_model["confusion_matrix"], title, output_dir / CONFUSION_MATRIX)
        plots.append(f"![Confusion matrix of the saved model]({CONFUSION_MATRIX})")
    launch = f" --num_processes {results['num_processes']}" * (results["num_processes"] > 1)
    sections = [
        f"# {output_dir.name}",
        _summary(results, origin),
        _table_of_epochs(progress.epochs, progress.saved_model["step"]),
        *plots,
        "## Origin",
        _table_of_origin(origin),
        f"`recipe.yaml` contains all options: `--config recipe.yaml --output_dir ANOTHER{launch}` repeats the run.",
    ]
    (output_dir / RUN_REPORT).write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _summary(results: dict[str, Any], origin: dict[str, Any]) -> str:
    minutes, seconds = divmod(round(results["train_runtime"]), 60)
    return (
        f"`{origin['model_name_or_path'] or 'new weights'}` trained on {results['train_samples']:,} pairs of "
        f"`{origin['train_file'] or origin['dataset_name_or_path']}`: {results['train_steps']:,} updates in {minutes} "
        f"min {seconds} s, {results['train_samples_per_second']:,.0f} pairs/s on {results['num_processes']} "
        f"process(es) of {results['device']}, mixed precision "
        f"{results['mixed_precision']}. The saved model is that of epoch {results['saved_epoch']:g}."
    )


def _table_of_epochs(entries: Sequence[dict[str, Any]], saved_step: int) -> str:
    names = [name for name in entries[0] if name.startswith(("train_", "eval_")) and name != "train_seconds"]
    lines = ["| epoch | step | " + " | ".join(name.replace("_", " ") for name in names) + " |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for entry in entries:
        metrics = " | ".join(f"{entry[name]:.4f}" for name in names)
        mark = " (saved)" if entry["step"] == saved_step else ""
        lines.append(f"| {entry['epoch']:g}{mark} | {entry['step']:,} | {metrics} |")
    return "\n".join(lines)


def _table_of_origin(origin: dict[str, Any]) -> str:
    rows = {
        "started": origin["started"],
        "resumed": ", ".join(f"{entry['started']} from step {entry['step']}" for entry in origin["resumed"]),
        "commit": origin["git_commit"],
        "initial weights (SHA-256)": origin["model_sha256"],
        "training pairs and vocabulary (SHA-256)": origin["data_fingerprint"],
        "machine": origin["machine"]["platform"],
        "versions": ", ".join(f"{name} {number}" for name, number in origin["versions"].items() if number),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value)])
