"""Accuracy by the number of training pairs, and what the curve says of more of them.

    python benchmarks/learning_curve.py models/start snli_1.0.zip [--sizes 1000 3000 ...] [--seeds 1 2 3] [...]

Each size is the first so many pairs, trained on labels alone by `bert-snli finetune`, with what options of it follow;
fewer pairs are seen more often: 4 epochs of 90,000, and as many more of N as the root of 90,000 / N says. Accuracy is
that on the validation split. Runs that are finished in `--output_dir` are not made again.

The errors are fitted by a·N^−b + c (Hestness et al., 2017), the runs of each size drawn anew a thousand times for the
interval; how far the fit can be trusted is told by what it says of the largest size from the others alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import curve_fit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import machine, markdown, publish

SIZES = (1_000, 3_000, 10_000, 30_000, 90_000)
WHOLE = 549_367  # labelled training pairs of SNLI
DRAWS = 1_000


def num_epochs(size: int) -> int:
    """More for fewer pairs."""
    return round(4 * (SIZES[-1] / size) ** 0.5)


def train(model: str, data: str, output_dir: Path, size: int, seed: int, more: list[str]) -> dict:
    """What `train_results.json` of one run says."""
    results = output_dir / "train_results.json"
    if not results.is_file():
        command = [sys.executable, "-m", "bert_snli.cli", "finetune", "--model_name_or_path", model]
        command += ["--dataset_name_or_path", data, "--output_dir", str(output_dir), "--overwrite_output_dir"]
        command += ["--max_train_samples", str(size), "--num_train_epochs", str(num_epochs(size))]
        subprocess.run([*command, "--seed", str(seed), *more], check=True)
    return json.loads(results.read_text(encoding="utf-8"))


def error_at(size, scale: float, power: float, floor: float):
    """The curve that errors follow: a·N^−b + c."""
    return scale * np.asarray(size, float) ** -power + floor


def fit(sizes: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Its scale, power and floor."""
    bounds = ([0, 0.01, 0], [10, 1, 0.3])
    return curve_fit(error_at, sizes, errors, p0=(1.0, 0.2, 0.05), bounds=bounds, maxfev=20_000)[0]


def extrapolate(accuracies: dict[int, list[float]], size: int, seed: int = 0) -> tuple[float, float, float]:
    """Accuracy at `size`: the fit's, and the 5th and 95th percentile over runs drawn anew."""
    random = np.random.default_rng(seed)
    sizes = np.array(list(accuracies))

    def at_size(drawn: list[float]) -> float:
        return 1 - float(error_at(size, *fit(sizes, 1 - np.array(drawn))))

    drawn = [at_size([np.mean(random.choice(runs, len(runs))) for runs in accuracies.values()]) for _ in range(DRAWS)]
    return at_size([np.mean(runs) for runs in accuracies.values()]), *np.percentile(drawn, [5, 95]).tolist()


def draw(accuracies: dict[int, list[float]], whole: tuple[float, float, float], path: Path) -> None:
    """Runs, fit and extrapolation."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for size, runs in accuracies.items():
        axes.plot([size] * len(runs), runs, "o", color="C0", markersize=4, label="runs" if size == SIZES[0] else None)
    sizes = np.array(list(accuracies))
    parameters = fit(sizes, 1 - np.array([np.mean(runs) for runs in accuracies.values()]))
    x = np.geomspace(sizes[0], WHOLE)
    axes.plot(x, 1 - error_at(x, *parameters), "-", color="C1", label="1 − (a·N^−b + c)")
    middle, low, high = whole
    axes.errorbar(
        [WHOLE], [middle], [[middle - low], [high - middle]], fmt="s", color="C1", capsize=4, label="all of SNLI"
    )
    axes.set(xscale="log", xlabel="training pairs", ylabel="validation accuracy")
    axes.grid(alpha=0.4, which="both")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what to start from")
    parser.add_argument("data", help="a source of SNLI")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--seeds", type=int, nargs="+", default=(1, 2, 3))
    parser.add_argument("--output_dir", type=Path, default=Path("learning_curve"))
    args, more = parser.parse_known_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    accuracies: dict[int, list[float]] = {}
    for size in sorted(args.sizes):
        runs = [
            train(args.model, args.data, args.output_dir / f"{size}-{seed}", size, seed, more) for seed in args.seeds
        ]
        accuracies[size] = [run["eval_accuracy"] for run in runs]
    whole = extrapolate(accuracies, WHOLE)
    *smaller, largest = accuracies
    check = extrapolate({size: accuracies[size] for size in smaller}, largest)
    rows = [
        [f"{size:,}", f"{np.mean(runs):.4f}", f"{min(runs):.4f} to {max(runs):.4f}"]
        for size, runs in accuracies.items()
    ]
    for what, (middle, low, high) in ((f"{largest:,}, from the others", check), (f"{WHOLE:,}, from all", whole)):
        rows.append([what, f"{middle:.4f}", f"{low:.4f} to {high:.4f} (90 %)"])
    draw(accuracies, whole, args.output_dir / "learning_curve.png")
    title = f"Validation accuracy from {args.model}; {len(args.seeds)} seeds"
    report = {"machine": machine(), "accuracies": accuracies, "whole": whole, "check": check}
    publish(args.output_dir / "learning_curve", title, markdown(["pairs", "mean", "range"], rows), report)


if __name__ == "__main__":
    main()
