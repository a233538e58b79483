"""Accuracy by the number of training pairs, and what it would be with more of them.

    for seed in 1 2 3; do
      bert-snli finetune ... --max_train_samples 1000 --num_train_epochs 20 --seed $seed --output_dir curve/1000-$seed
    done
    python benchmarks/learning_curve.py curve/* [--pairs 549367]

Reads finished runs of one recipe, two at least of each size; they may differ in `max_train_samples`,
`num_train_epochs` and `seed`. Their errors, of the epoch that each kept, are fitted by a·N^−b + c (Hestness et al.,
2017), with the floor c and without. The range of an extrapolation is the middle 90 % of fits to runs drawn anew within
each size: what the seeds leave open, somewhat less than all of it, with so few; not what the form or other training
pairs do. How far a form can be trusted is told by what it says of the largest size from the others alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from matplotlib.figure import Figure
from scipy.optimize import curve_fit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import machine, markdown, publish
from bert_snli.console import run
from bert_snli.errors import BertSnliError

FREE = ("max_train_samples", "num_train_epochs", "seed", "output_dir")
FORMS = {"a·N^−b": False, "a·N^−b + c": True}  # whether it has a floor
LINES = ("-", "--")  # both are seen where one lies on the other
FEWEST_SIZES = 5  # one more than the parameters, and the largest is left out to check


class Estimate(NamedTuple):
    """An accuracy by a fit to all runs, and the 5th and 95th percentile by fits to runs drawn anew."""

    middle: float
    low: float
    high: float


def read_runs(folders: Sequence[Path]) -> dict[int, list[float]]:
    """The accuracies of finished runs by their number of training pairs, ascending."""
    accuracies: dict[int, list[float]] = defaultdict(list)
    first: dict = {}
    for folder in folders:
        try:
            results = json.loads((folder / "train_results.json").read_text(encoding="utf-8"))
            recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
            accuracies[results["train_samples"]].append(results["eval_accuracy"])
        except (OSError, ValueError, KeyError) as error:
            raise BertSnliError(
                f"{folder}: no finished run ({error}); give output folders of finished `bert-snli finetune`"
            ) from error
        first = first or recipe
        differing = [name for name in {*first, *recipe} - {*FREE} if first.get(name) != recipe.get(name)]
        if differing:
            raise BertSnliError(f"{folder}: {min(differing)} is not that of {folders[0]}; give runs of one recipe")
    for size, runs in accuracies.items():
        if len(runs) < 2:
            raise BertSnliError(f"one run of {size:,} pairs; give two of each size at least")
    if len(accuracies) < FEWEST_SIZES:
        raise BertSnliError(f"{len(accuracies)} training sizes; give {FEWEST_SIZES} at least")
    return dict(sorted(accuracies.items()))


def fit(sizes: Sequence[int], accuracies: Sequence[float], floored: bool):
    """The function of N whose error a·N^−b + c is nearest to these."""
    smallest = sizes[0]  # in units of which the scale is an error, at most 1

    def error_at(size, scale, power, floor=0.0):
        return scale * (np.asarray(size, float) / smallest) ** -power + floor

    start, highest = [0.5, 0.2, 0.1], [1.0, 2.0, 1.0]
    count = 3 if floored else 2
    bounds = ([0.0] * count, highest[:count])
    parameters, _ = curve_fit(error_at, sizes, 1 - np.asarray(accuracies), start[:count], bounds=bounds, maxfev=50_000)
    return lambda size: 1 - error_at(size, *parameters)


def extrapolate(accuracies: dict[int, list[float]], size: int, floored: bool, draws: int) -> Estimate:
    """What a form says of `size` from the runs of others."""
    random, sizes = np.random.default_rng(0), list(accuracies)

    def at_size(means: list[float]) -> float:
        return float(fit(sizes, means, floored)(size))

    drawn = [at_size([np.mean(random.choice(runs, len(runs))) for runs in accuracies.values()]) for _ in range(draws)]
    return Estimate(at_size([np.mean(runs) for runs in accuracies.values()]), *np.percentile(drawn, [5, 95]).tolist())


def draw(accuracies: dict[int, list[float]], pairs: int, estimates: dict[str, Estimate], path: Path) -> None:
    """Runs, fits and what they say of more pairs."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    points = [(size, accuracy) for size, runs in accuracies.items() for accuracy in runs]
    means = [float(np.mean(runs)) for runs in accuracies.values()]
    for number, (form, floored) in enumerate(FORMS.items()):
        x = np.geomspace(min(accuracies), pairs)
        axes.plot(x, fit(list(accuracies), means, floored)(x), LINES[number], color=f"C{number}", label=f"1 − ({form})")
        middle, low, high = estimates[form]
        axes.errorbar([pairs], [middle], [[middle - low], [high - middle]], fmt="s", color=f"C{number}", capsize=4)
    axes.plot(*zip(*points, strict=True), "o", color="C2", markersize=4, label="runs")
    axes.set(xscale="log", xlabel="training pairs", ylabel="accuracy")
    axes.grid(alpha=0.4)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of `bert-snli finetune`")
    parser.add_argument("--pairs", type=int, default=549_367, help="to extrapolate to; as many as SNLI has to train on")
    parser.add_argument("--output_file", type=Path, default=Path("learning_curve"))
    parser.add_argument("--draws", type=int, default=1_000, help="of runs, for the ranges of what is extrapolated")
    args = parser.parse_args()
    accuracies = read_runs(args.runs)
    args.output_file.parent.mkdir(parents=True, exist_ok=True)
    *smaller, largest = accuracies
    fewer = {size: accuracies[size] for size in smaller}
    checks = {form: extrapolate(fewer, largest, floored, args.draws) for form, floored in FORMS.items()}
    estimates = {form: extrapolate(accuracies, args.pairs, floored, args.draws) for form, floored in FORMS.items()}
    rows = [
        [f"{size:,}", f"{np.mean(runs):.4f}", f"{min(runs):.4f} to {max(runs):.4f} ({len(runs)} runs)"]
        for size, runs in accuracies.items()
    ]
    for form in FORMS:
        for what, (middle, low, high) in (
            (f"{largest:,}, by {form} of the smaller", checks[form]),
            (f"{args.pairs:,}, by {form}", estimates[form]),
        ):
            rows.append([what, f"{middle:.4f}", f"{low:.4f} to {high:.4f} (runs drawn anew)"])
    report = {"machine": machine(), "accuracies": accuracies, "checks": checks, "estimates": estimates}
    publish(
        args.output_file, "Accuracy of the epoch that each run kept", markdown(["pairs", "mean", "range"], rows), report
    )
    draw(accuracies, args.pairs, estimates, args.output_file.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(run(Path(__file__).name, main))
