"""benchmarks/learning_curve.py: runs that follow a known law, and runs that cannot be compared."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "learning_curve.py"
FLOOR = 0.12


def accuracy_at(size: int, seed: int) -> float:
    """The mean of seeds 1, 2 and 3 is the law's."""
    return 1 - (1.5 * size**-0.2 + FLOOR) + 0.001 * (seed - 2)


def finished_run(folder: Path, size: int, seed: int, **recipe) -> Path:
    folder.mkdir()
    results = {"train_samples": size, "eval_accuracy": accuracy_at(size, seed)}
    (folder / "train_results.json").write_text(json.dumps(results))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"seed": seed, "learning_rate": 5e-4, **recipe}))
    return folder


def learning_curve(tmp_path: Path, runs: list[Path]) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, runs), "--output_file", str(tmp_path / "curve")]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def runs(tmp_path):
    sizes = (1_000, 3_000, 10_000, 30_000, 90_000)
    return [finished_run(tmp_path / f"{size}-{seed}", size, seed) for size in sizes for seed in (1, 2, 3)]


def test_the_law_that_runs_follow_is_found(tmp_path, runs):
    finished = learning_curve(tmp_path, runs)
    assert finished.returncode == 0, finished.stderr
    report = json.loads((tmp_path / "curve.json").read_text())
    middle, low, high = report["estimates"]["a·N^−b + c"]
    assert middle == pytest.approx(accuracy_at(549_367, 2), abs=1e-4)
    assert low < middle < high < low + 0.02
    # Without a floor, small sizes promise more than the largest holds.
    assert report["checks"]["a·N^−b"][1] > accuracy_at(90_000, 2)
    assert report["checks"]["a·N^−b + c"][0] == pytest.approx(accuracy_at(90_000, 2), abs=1e-4)
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_runs_of_two_recipes_are_refused(tmp_path, runs):
    other = finished_run(tmp_path / "other", 1_000, 4, learning_rate=1e-4)
    finished = learning_curve(tmp_path, [*runs, other])
    assert finished.returncode != 0
    assert f"{other}: learning_rate is not that of" in finished.stderr


def test_three_sizes_are_too_few(tmp_path, runs):
    assert "3 training sizes; give runs of 4 at least" in learning_curve(tmp_path, runs[:9]).stderr
