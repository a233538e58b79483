"""Pictures: the book's training curve, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # not pyplot, which would switch a notebook's own figures


def plot_curve(epochs: Sequence[dict[str, Any]], eval_split: str, folder: Path) -> None:
    """The book's figure (15.7): train loss, train and evaluation accuracy over epochs, as `curve.png` and `.svg`."""
    x = [entry["epoch"] for entry in epochs]
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
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


def plot_confusion_matrix(matrix: dict[str, dict[str, int]], title: str, path: Path) -> None:
    """Counts of each gold label (rows) and predicted label (columns), shaded by the share of the row."""
    names = list(matrix)
    counts = np.array([[matrix[gold][predicted] for predicted in names] for gold in names])
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(4.8, 4.2), layout="constrained")
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
