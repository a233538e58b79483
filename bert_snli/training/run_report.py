"""`report.md`: one page about a finished run, with its plots."""

from pathlib import Path
from typing import Any

from bert_snli.evaluation.plots import plot_confusion_matrix, plot_training_progress
from bert_snli.files import is_evaluation
from bert_snli.rendering import render
from bert_snli.training.checkpointing import Progress
from bert_snli.training.run_folder import read_metrics, read_origin

RUN_REPORT, TRAINING_PLOT, CONFUSION_MATRIX = "report.md", "training.png", "confusion_matrix.png"


def write_run_report(output_dir: Path, results: dict[str, Any], progress: Progress) -> None:
    """Write `report.md`, a plot of the training and, for a classifier, its confusion matrix.

    `results` is the content of `train_results.json`.
    """
    updates = [entry for entry in read_metrics(output_dir) if not is_evaluation(entry)]
    plot_training_progress(updates, output_dir / TRAINING_PLOT)
    confusion_matrix = progress.saved_model.get("confusion_matrix")
    if confusion_matrix:
        title = f"{results['eval_split']}: accuracy {results['eval_accuracy']:.1%}"
        plot_confusion_matrix(confusion_matrix, title, output_dir / CONFUSION_MATRIX)
    names = [name for name in progress.epochs[0] if name.startswith(("train_", "eval_")) and name != "train_seconds"]
    page = render(
        "run_report.md",
        name=output_dir.name,
        results=results,
        origin=read_origin(output_dir),
        names=names,
        epochs=progress.epochs,
        saved_step=progress.saved_model["step"],
        training_plot=TRAINING_PLOT,
        confusion_matrix=CONFUSION_MATRIX if confusion_matrix else None,
    )
    (output_dir / RUN_REPORT).write_text(page, encoding="utf-8")
