"""Accuracy by the number of training pairs, and what it would be with more of them.

    for seed in 1 2 3; do
      bert-snli finetune ... --max_train_samples 1000 --num_train_epochs 38 --seed $seed --output_dir curve/1000-$seed
    done
    python benchmarks/learning_curve.py curve/* [--pairs 549367]

Reads finished runs of one recipe: they may differ in `max_train_samples`, `num_train_epochs` and `seed`. Their errors
on the validation split are fitted by a·N^−b + c (Hestness et al., 2017), with the floor c and without. The interval is
the middle 90 % of a thousand fits to runs drawn anew within each size; it holds for the form and for these training
pairs. How far a form can be trusted is told by what it says of the largest size from the others alone.
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

FREE = ("max_train_samples", "num_train_epochs", "seed", "output_dir")
FORMS = {"a·N^−b": 0.0, "a·N^−b + c": 0.3}  # the highest floor
DRAWS = 1_000
FEWEST_SIZES = 4  # one more than the parameters, when the largest is left out to check


class Estimate(NamedTuple):
    """An accuracy, and the 5th and 95th percentile of what other runs would have said."""

    middle: float
    low: float
    high: float


def read_runs(folders: Sequence[Path]) -> dict[int, list[float]]:
    """The validation accuracies of finished runs by their number of training pairs, ascending."""
    accuracies: dict[int, list[float]] = defaultdict(list)
    recipes = []
    for folder in folders:
        try:
            results = json.loads((folder / "train_results.json").read_text(encoding="utf-8"))
            recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise SystemExit(f"{error.filename}: is missing; give folders of finished runs") from error
        recipes.append({name: value for name, value in recipe.items() if name not in FREE})
        accuracies[results["train_samples"]].append(results["eval_accuracy"])
        differing = [name for name, value in recipes[-1].items() if recipes[0].get(name) != value]
        if differing:
            raise SystemExit(f"{folder}: {differing[0]} is not that of {folders[0]}; give runs of one recipe")
    if len(accuracies) < FEWEST_SIZES:
        raise SystemExit(f"{len(accuracies)} training sizes; give runs of {FEWEST_SIZES} at least")
    return dict(sorted(accuracies.items()))


def fit(sizes: Sequence[int], accuracies: Sequence[float], highest_floor: float):
    """The function of N whose error a·N^−b + c is nearest to these."""

    def error_at(size, scale, power, floor=0.0):
        return scale * np.asarray(size, float) ** -power + floor

    start, highest = [1.0, 0.1, 0.01], [10.0, 1.0, highest_floor]
    free = slice(None) if highest_floor else slice(2)
    bounds = ([0.0] * len(start[free]), highest[free])
    parameters, _ = curve_fit(error_at, sizes, 1 - np.asarray(accuracies), start[free], bounds=bounds, maxfev=50_000)
    return lambda size: 1 - error_at(size, *parameters)


def extrapolate(accuracies: dict[int, list[float]], size: int, highest_floor: float) -> Estimate:
    """What a form says of `size` from the runs of others."""
    random, sizes = np.random.default_rng(0), list(accuracies)

    def at_size(means: list[float]) -> float:
        return float(fit(sizes, means, highest_floor)(size))

    drawn = [at_size([np.mean(random.choice(runs, len(runs))) for runs in accuracies.values()]) for _ in range(DRAWS)]
    return Estimate(at_size([np.mean(runs) for runs in accuracies.values()]), *np.percentile(drawn, [5, 95]).tolist())


def draw(accuracies: dict[int, list[float]], pairs: int, estimates: dict[str, Estimate], path: Path) -> None:
    """Runs, fits and what they say of more pairs."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    points = [(size, accuracy) for size, runs in accuracies.items() for accuracy in runs]
    means = [float(np.mean(runs)) for runs in accuracies.values()]
    for number, (form, highest_floor) in enumerate(FORMS.items(), start=1):
        x = np.geomspace(min(accuracies), pairs)
        axes.plot(x, fit(list(accuracies), means, highest_floor)(x), "-", color=f"C{number}", label=f"1 − ({form})")
        middle, low, high = estimates[form]
        axes.errorbar([pairs], [middle], [[middle - low], [high - middle]], fmt="s", color=f"C{number}", capsize=4)
    axes.plot(*zip(*points, strict=True), "o", color="C0", markersize=4, label="runs")
    axes.set(xscale="log", xlabel="training pairs", ylabel="validation accuracy")
    axes.grid(alpha=0.4)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of `bert-snli finetune`")
    parser.add_argument("--pairs", type=int, default=549_367, help="to extrapolate to; as many as SNLI has to train on")
    parser.add_argument("--output_file", type=Path, default=Path("learning_curve"))
    args = parser.parse_args()
    accuracies = read_runs(args.runs)
    *smaller, largest = accuracies
    checks = {
        form: extrapolate({size: accuracies[size] for size in smaller}, largest, floor) for form, floor in FORMS.items()
    }
    estimates = {form: extrapolate(accuracies, args.pairs, floor) for form, floor in FORMS.items()}
    rows = [
        [f"{size:,}", f"{np.mean(runs):.4f}", f"{min(runs):.4f} to {max(runs):.4f} ({len(runs)} runs)"]
        for size, runs in accuracies.items()
    ]
    for form in FORMS:
        for what, (middle, low, high) in (
            (f"{largest:,}, by {form} of the smaller", checks[form]),
            (f"{args.pairs:,}, by {form}", estimates[form]),
        ):
            rows.append([what, f"{middle:.4f}", f"{low:.4f} to {high:.4f} (90 %)"])
    report = {"machine": machine(), "accuracies": accuracies, "checks": checks, "estimates": estimates}
    publish(args.output_file, "Validation accuracy", markdown(["pairs", "mean", "range"], rows), report)
    draw(accuracies, args.pairs, estimates, args.output_file.with_suffix(".png"))


if __name__ == "__main__":
    main()
