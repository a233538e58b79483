"""Pictures: the book's training curve, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _figure(**options: Any) -> Figure:
    """Make a figure. Matplotlib takes a second to import, so it is imported when a figure is needed."""
    from matplotlib.figure import Figure  # pyplot would change the figures of a notebook

    return Figure(**options)


def plot_curve(entries: Sequence[dict[str, Any]], eval_split: str, folder: Path) -> None:
    """The book's figure (15.7): train loss, train and evaluation accuracy over epochs, as `curve.png` and `.svg`."""
    epochs = [entry for entry in entries if "eval_loss" in entry]
    x = [entry["epoch"] for entry in epochs]
    figure = _figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    series = (
        ("train loss", "train_loss", "-"),
        ("train accuracy", "train_accuracy", "--"),
        (f"{eval_split} accuracy", "eval_accuracy", "-."),
    )
    for label, key, style in series:
        axes.plot(x, [entry[key] for entry in epochs], style, marker="o", markersize=3, label=label)
    axes.set_xlabel("epoch")
    axes.set_xlim(0, 1.03 * max(x))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.4)
    axes.legend(loc="best", fontsize=9)
    last = epochs[-1]
    axes.set_title(
        f"train loss {last['train_loss']:.3f}, train acc {last['train_accuracy']:.3f}, "
        f"{eval_split} acc {last['eval_accuracy']:.3f}",
        fontsize=10,
    )
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"curve.{suffix}", dpi=150)


def plot_pretraining(entries: Sequence[dict[str, Any]], eval_split: str, folder: Path) -> None:
    """The book's figure (15.10): MLM and NSP loss over updates, as `curve.png` and `.svg`; evaluations as points."""
    figure = _figure(figsize=(5.5, 5), layout="constrained")
    both_axes = figure.subplots(2, sharex=True)
    for axes, key, name in zip(both_axes, ("mlm_loss", "nsp_loss"), ("MLM loss", "NSP loss"), strict=True):
        for where, label, style in (("train", "train", "-"), ("eval", eval_split, "o--")):
            of_where = [entry for entry in entries if ("eval_loss" in entry) == (where == "eval")]
            steps, values = ([entry[column] for entry in of_where] for column in ("step", f"{where}_{key}"))
            axes.plot(steps, values, style, markersize=3, label=label)
        axes.set_ylabel(name)
        axes.grid(alpha=0.4)
        axes.legend(loc="best", fontsize=9)
    both_axes[-1].set_xlabel("step")
    last = entries[-1]
    both_axes[0].set_title(
        f"{eval_split}: MLM loss {last['eval_mlm_loss']:.3f} (accuracy {last['eval_mlm_accuracy']:.3f}), "
        f"NSP loss {last['eval_nsp_loss']:.3f} (accuracy {last['eval_nsp_accuracy']:.3f})",
        fontsize=9,
    )
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"curve.{suffix}", dpi=150)


def plot_course(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Learning rate, norm of the gradient and pairs per second over steps, from lines of `metrics.jsonl`."""
    figure = _figure(figsize=(5.5, 5.6), layout="constrained")
    series = {
        "learning_rate": "learning rate",
        "grad_norm": "norm of the gradient",
        "train_samples_per_second": "pairs/s",
    }
    all_axes = figure.subplots(len(series), sharex=True)
    steps = [entry["step"] for entry in entries]
    for axes, (key, name) in zip(all_axes, series.items(), strict=True):
        values = np.array([entry[key] for entry in entries], float)  # none becomes a gap
        axes.plot(steps, values, marker="o", markersize=2)
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.4)
    all_axes[-1].set_xlabel("step")
    figure.savefig(path, dpi=150)


def plot_confusion_matrix(matrix: dict[str, dict[str, int]], title: str, path: Path) -> None:
    """Counts of each gold label (rows) and predicted label (columns), shaded by the share of the row."""
    names = list(matrix)
    counts = np.array([[matrix[gold][predicted] for predicted in names] for gold in names])
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = _figure(figsize=(4.8, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names, rotation=90, va="center")
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")
    axes.set_title(title, fontsize=10)
    for (row, column), count in np.ndenumerate(counts):
        shade = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count:,}\n{shares[row, column]:.1%}", ha="center", va="center", color=shade)
    figure.savefig(path, dpi=150)


def plot_reliability(calibration: dict, path: Path) -> None:
    """Accuracy over confidence, the diagonal of a model that is as often right as it says, and how many pairs."""
    bins = calibration["bins"]
    confidence = [entry["confidence"] for entry in bins]
    figure = _figure(figsize=(4.8, 4.6), layout="constrained")
    axes, counts = figure.subplots(2, height_ratios=(4, 1), sharex=True)
    axes.plot([0, 1], [0, 1], ":", color="gray", label="as sure as right")
    axes.plot(confidence, [entry["accuracy"] for entry in bins], marker="o", label="the model")
    axes.set_ylabel("accuracy")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.4)
    axes.legend(loc="upper left", fontsize=9)
    axes.set_title(f"expected calibration error {calibration['expected_calibration_error']:.1%}", fontsize=10)
    counts.bar(confidence, [entry["pairs"] for entry in bins], width=0.045)
    counts.set_xlabel("confidence")
    counts.set_ylabel("pairs")
    figure.savefig(path, dpi=150)


def plot_slices(slices: dict[str, list[dict]], accuracy: float, path: Path) -> None:
    """Accuracy of each slice with its 95 % interval, a panel for each way of slicing; the dotted line is the whole."""
    figure = _figure(figsize=(10, 3.4), layout="constrained")
    all_axes = figure.subplots(1, len(slices), sharey=True)
    for axes, (name, entries) in zip(all_axes, slices.items(), strict=True):
        shares = np.array([entry["accuracy"] for entry in entries])
        ends = np.array([entry["accuracy_interval"] for entry in entries]).T
        axes.bar(range(len(entries)), shares, yerr=np.abs(ends - shares), capsize=3, color="tab:blue", alpha=0.75)
        axes.axhline(accuracy, linestyle=":", color="black")
        axes.set_xticks(range(len(entries)), [entry["slice"] for entry in entries], rotation=35, ha="right", fontsize=8)
        axes.set_title(name.replace("_", " "), fontsize=10)
        for place, entry in enumerate(entries):
            axes.text(place, 0.02, f"{entry['pairs']:,}", ha="center", fontsize=7, color="white", rotation=90)
    all_axes[0].set_ylabel("accuracy")
    all_axes[0].set_ylim(0, 1)
    figure.savefig(path, dpi=150)
