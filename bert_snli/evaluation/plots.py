"""Plots of training runs and evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]  # lines of `metrics.jsonl`


def _new_figure(width: float, height: float) -> Figure:
    # Imported here, because it takes a second. Not pyplot, which would change the figures of a notebook.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _draw_lines(axes: Axes, x: str, lines: Sequence[tuple[Rows, str, str, str]], **properties: Any) -> None:
    """Draw (rows, key, label, style) over the value `x` of the rows. None is a gap."""
    for rows, key, label, style in lines:
        values = np.array([row[key] for row in rows], float)
        axes.plot([row[x] for row in rows], values, style, markersize=3, label=label)
    axes.set(**properties)
    axes.label_outer()
    axes.grid(alpha=0.4)
    axes.legend(fontsize=9)


def _save(figure: Figure, title: str, *paths: Path) -> None:
    figure.suptitle(title, fontsize=10)
    for path in paths:
        figure.savefig(path, dpi=150)


def plot_curve(entries: Rows, eval_split: str, folder: Path) -> None:
    """Draw d2l's figure (15.7) as `curve.png` and `.svg`: train loss, train and evaluation accuracy over epochs."""
    epochs = [entry for entry in entries if "eval_loss" in entry]
    lines = [
        (epochs, "train_loss", "train loss", "o-"),
        (epochs, "train_accuracy", "train accuracy", "o--"),
        (epochs, "eval_accuracy", f"{eval_split} accuracy", "o-."),
    ]
    figure = _new_figure(5.5, 3.8)
    right = 1.03 * max(epoch["epoch"] for epoch in epochs)
    _draw_lines(figure.subplots(), "epoch", lines, xlabel="epoch", xlim=(0, right), ylim=(0, None))
    last = epochs[-1]
    title = (
        f"train loss {last['train_loss']:.3f}, train acc {last['train_accuracy']:.3f}, "
        f"{eval_split} acc {last['eval_accuracy']:.3f}"
    )
    _save(figure, title, folder / "curve.png", folder / "curve.svg")


def plot_pretraining(entries: Rows, eval_split: str, folder: Path) -> None:
    """Draw d2l's figure (15.10) as `curve.png` and `.svg`: MLM and NSP loss over updates; evaluations as points."""
    updates = [entry for entry in entries if "eval_loss" not in entry]
    evaluations = [entry for entry in entries if "eval_loss" in entry]
    figure = _new_figure(5.5, 5)
    for axes, task in zip(figure.subplots(2, sharex=True), ("mlm", "nsp"), strict=True):
        lines = [
            (updates, f"train_{task}_loss", "train", "-"),
            (evaluations, f"eval_{task}_loss", eval_split, "o--"),
        ]
        _draw_lines(axes, "step", lines, xlabel="step", ylabel=f"{task.upper()} loss")
    last = entries[-1]
    title = (
        f"{eval_split}: MLM loss {last['eval_mlm_loss']:.3f} (accuracy {last['eval_mlm_accuracy']:.3f})\n"
        f"NSP loss {last['eval_nsp_loss']:.3f} (accuracy {last['eval_nsp_accuracy']:.3f})"
    )
    _save(figure, title, folder / "curve.png", folder / "curve.svg")


def plot_training_progress(entries: Rows, path: Path) -> None:
    """Draw learning rate, gradient norm and throughput over steps."""
    names = {"learning_rate": "learning rate", "grad_norm": "gradient norm", "train_samples_per_second": "examples/s"}
    figure = _new_figure(5.5, 5.6)
    for axes, (key, name) in zip(figure.subplots(len(names), sharex=True), names.items(), strict=True):
        _draw_lines(axes, "step", [(entries, key, name, "o-")], xlabel="step", ylim=(0, None))
    _save(figure, "", path)


def plot_confusion_matrix(matrix: Mapping[str, Mapping[str, int]], title: str, path: Path) -> None:
    """Draw the counts of each gold label (rows) and predicted label (columns), shaded by the share of the row."""
    names = list(matrix)
    counts = np.array([[matrix[gold][predicted] for predicted in names] for gold in names])
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = _new_figure(4.8, 4.2)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names, rotation=90, va="center")
    axes.set(xlabel="predicted", ylabel="gold")
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count:,}\n{shares[row, column]:.1%}", ha="center", va="center", color=color)
    _save(figure, title, path)


def plot_reliability(calibration: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy over confidence next to the diagonal of perfect calibration, and the pairs of each bin."""
    bins = calibration["bins"]
    diagonal = [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]
    lines = [(diagonal, "accuracy", "perfect calibration", "k:"), (bins, "accuracy", "model", "o-")]
    figure = _new_figure(4.8, 4.6)
    axes, count_axes = figure.subplots(2, height_ratios=(4, 1), sharex=True)
    _draw_lines(axes, "confidence", lines, ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    count_axes.bar([entry["confidence"] for entry in bins], [entry["pairs"] for entry in bins], width=0.045)
    count_axes.set(xlabel="confidence", ylabel="pairs")
    _save(figure, f"expected calibration error {calibration['expected_calibration_error']:.1%}", path)


def plot_slices(slices: Mapping[str, Sequence[dict]], accuracy: float, path: Path) -> None:
    """Draw the accuracy of each slice with its 95 % interval; the dotted line is the accuracy of the whole set."""
    figure = _new_figure(10, 3.4)
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
    _save(figure, "", path)
