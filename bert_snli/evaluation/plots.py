"""Plots of training runs and evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_snli.files import is_evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]  # lines of `metrics.jsonl`


@contextmanager
def _new_figure(width: float, height: float, title: str, *paths: Path) -> Iterator[Figure]:
    """Yield a figure to draw in, and save it as `paths`."""
    # Imported here, because it takes a second. Importing pyplot would change the figures of a notebook.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=10)
    yield figure
    for path in paths:
        figure.savefig(path, dpi=150)


def _draw_lines(axes: Axes, x: str, lines: Sequence[tuple[Rows, str, str, str]], **properties: Any) -> None:
    """Draw a line for each (rows, key, label, style): the values `key` over the values `x`. None leaves a gap."""
    for rows, key, label, style in lines:
        values = np.array([row[key] for row in rows], float)
        axes.plot([row[x] for row in rows], values, style, markersize=3, label=label)
    axes.set(**properties)
    axes.label_outer()
    axes.grid(alpha=0.4)
    axes.legend(fontsize=9)


def plot_curve(entries: Rows, eval_split: str, folder: Path) -> None:
    """Plot train loss, train and evaluation accuracy over epochs, as in d2l 15.7. Files: `curve.png`, `.svg`."""
    epochs = [entry for entry in entries if is_evaluation(entry)]
    lines = [
        (epochs, "train_loss", "train loss", "o-"),
        (epochs, "train_accuracy", "train accuracy", "o--"),
        (epochs, "eval_accuracy", f"{eval_split} accuracy", "o-."),
    ]
    title = "train loss {train_loss:.3f}, train acc {train_accuracy:.3f}, {split} acc {eval_accuracy:.3f}"
    title = title.format(split=eval_split, **epochs[-1])
    with _new_figure(5.5, 3.8, title, folder / "curve.png", folder / "curve.svg") as figure:
        right = 1.03 * max(epoch["epoch"] for epoch in epochs)
        _draw_lines(figure.subplots(), "epoch", lines, xlabel="epoch", xlim=(0, right), ylim=(0, None))


def plot_pretraining(entries: Rows, eval_split: str, folder: Path) -> None:
    """Plot the MLM and NSP losses over steps, as in d2l 15.10. Points are evaluations. Files: `curve.png`, `.svg`."""
    steps = [entry for entry in entries if not is_evaluation(entry)]
    evaluations = [entry for entry in entries if is_evaluation(entry)]
    title = (
        "{split}: MLM loss {eval_mlm_loss:.3f} (accuracy {eval_mlm_accuracy:.3f})\n"
        "NSP loss {eval_nsp_loss:.3f} (accuracy {eval_nsp_accuracy:.3f})"
    ).format(split=eval_split, **evaluations[-1])
    with _new_figure(5.5, 5, title, folder / "curve.png", folder / "curve.svg") as figure:
        for axes, task in zip(figure.subplots(2, sharex=True), ("mlm", "nsp"), strict=True):
            lines = [(steps, f"train_{task}_loss", "train", "-"), (evaluations, f"eval_{task}_loss", eval_split, "o--")]
            _draw_lines(axes, "step", lines, xlabel="step", ylabel=f"{task.upper()} loss")


def plot_training_progress(entries: Rows, path: Path) -> None:
    """Plot learning rate, gradient norm and throughput over steps."""
    names = {"learning_rate": "learning rate", "grad_norm": "gradient norm", "train_samples_per_second": "examples/s"}
    with _new_figure(5.5, 5.6, "", path) as figure:
        for axes, (key, name) in zip(figure.subplots(len(names), sharex=True), names.items(), strict=True):
            _draw_lines(axes, "step", [(entries, key, name, "o-")], xlabel="step", ylim=(0, None))


def plot_confusion_matrix(matrix: Mapping[str, Mapping[str, int]], title: str, path: Path) -> None:
    """Plot the confusion matrix. Rows are gold labels, columns are predicted labels, colours are shares of a row."""
    names = list(matrix)
    counts = np.array([list(row.values()) for row in matrix.values()])
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    with _new_figure(4.8, 4.2, title, path) as figure:
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names, rotation=90, va="center")
        axes.set(xlabel="predicted", ylabel="gold")
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:,}\n{shares[row, column]:.1%}", ha="center", va="center", color=color)


def plot_reliability(calibration: Mapping[str, Any], path: Path) -> None:
    """Plot accuracy over confidence, the diagonal of perfect calibration, and the number of pairs in each bin."""
    bins = calibration["bins"]
    diagonal = [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]
    lines = [(diagonal, "accuracy", "perfect calibration", "k:"), (bins, "accuracy", "model", "o-")]
    title = f"expected calibration error {calibration['expected_calibration_error']:.1%}"
    with _new_figure(4.8, 4.6, title, path) as figure:
        axes, count_axes = figure.subplots(2, height_ratios=(4, 1), sharex=True)
        _draw_lines(axes, "confidence", lines, ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        count_axes.bar([entry["confidence"] for entry in bins], [entry["pairs"] for entry in bins], width=0.045)
        count_axes.set(xlabel="confidence", ylabel="pairs")


def plot_slices(slices: Mapping[str, Sequence[dict]], accuracy: float, path: Path) -> None:
    """Plot the accuracy of each slice with its 95 % interval. A dotted line shows the accuracy on all pairs."""
    with _new_figure(10, 3.4, "", path) as figure:
        for axes, (name, entries) in zip(figure.subplots(1, len(slices), sharey=True), slices.items(), strict=True):
            x = range(len(entries))
            accuracies = np.array([entry["accuracy"] for entry in entries])
            errors = np.abs(np.array([entry["accuracy_interval"] for entry in entries]).T - accuracies)
            axes.bar(x, accuracies, yerr=errors, capsize=3, color="tab:blue", alpha=0.75)
            axes.axhline(accuracy, linestyle=":", color="black")
            axes.set_xticks(x, [entry["slice"] for entry in entries], rotation=35, ha="right", fontsize=8)
            axes.set(xlabel=name.replace("_", " "), ylabel="accuracy", ylim=(0, 1))
            axes.label_outer()
            for place, entry in enumerate(entries):
                axes.text(place, 0.02, f"{entry['pairs']:,}", ha="center", fontsize=7, color="white", rotation=90)
