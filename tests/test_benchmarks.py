"""Scripts of benchmarks/ whose figures are not times: the learning curve and the hard pairs."""

import json
from pathlib import Path

import pytest
import yaml

from bert_snli.labels import BOOK_LABELS

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


@pytest.fixture
def runs(tmp_path):
    sizes = (1_000, 3_000, 10_000, 30_000, 90_000)
    return [finished_run(tmp_path / f"{size}-{seed}", size, seed) for size in sizes for seed in (1, 2, 3)]


def test_the_law_that_runs_follow_is_found(tmp_path, runs, run_python):
    options = ("--output_file", tmp_path / "curve", "--draws", 100, "--pairs", 300_000)
    done = run_python("benchmarks/learning_curve.py", *runs, *options)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "curve.json").read_text())
    middle, low, high = report["estimates"]["a·N^−b + c"]
    assert middle == pytest.approx(accuracy_at(300_000, 2), abs=1e-4)
    assert low < middle < high < low + 0.02
    # Without a floor, small sizes promise more than the largest holds.
    assert report["checks"]["a·N^−b"][1] > accuracy_at(90_000, 2)
    assert report["checks"]["a·N^−b + c"][0] == pytest.approx(accuracy_at(90_000, 2), abs=1e-4)
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_runs_of_two_recipes_are_refused(tmp_path, runs, run_python):
    other = finished_run(tmp_path / "other", 1_000, 4, learning_rate=1e-4)
    done = run_python("benchmarks/learning_curve.py", *runs, other)
    assert done.returncode == 2
    assert f"{other}: learning_rate is not that of" in done.stderr


def test_too_few_sizes_and_folders_of_no_run_are_refused(tmp_path, runs, run_python):
    few = run_python("benchmarks/learning_curve.py", *runs[:12])
    assert "4 training sizes; give 5 at least" in few.stderr
    assert "one run of 90,000 pairs" in run_python("benchmarks/learning_curve.py", *runs[:13]).stderr
    (tmp_path / "notes.txt").write_text("no run")
    done = run_python("benchmarks/learning_curve.py", *runs, tmp_path / "notes.txt")
    assert f"{tmp_path / 'notes.txt'}: no finished run" in done.stderr and "Traceback" not in done.stderr


def test_hard_pairs_are_those_that_the_hypothesis_does_not_give_away(tmp_path, run_python):
    """Each label has a word of its own in training; in two pairs of dev it has that of another."""
    words = dict(zip(BOOK_LABELS, ("outside", "sleeping", "tall"), strict=True))
    dev = [("entailment", "outside"), ("contradiction", "outside"), ("neutral", "tall"), ("entailment", "sleeping")]

    def write(split: str, rows: list[tuple[str, str]]) -> None:
        lines = [
            json.dumps({"gold_label": label, "sentence1": "A man runs .", "sentence2": f"Somebody is {word} ."})
            for label, word in rows
        ]
        (tmp_path / f"snli_1.0_{split}.jsonl").write_text("\n".join(lines) + "\n")

    write("train", [*words.items()] * 20)
    write("dev", dev)
    hard = tmp_path / "hard.jsonl"
    done = run_python("benchmarks/hard_pairs.py", tmp_path, hard, "--split", "validation")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in hard.read_text().splitlines()]
    assert [(row["label"], row["hypothesis"]) for row in rows] == [
        ("contradiction", "Somebody is outside ."),
        ("entailment", "Somebody is sleeping ."),
    ]
    assert "hypotheses alone: 0.500 of 4 right; the other 2" in done.stdout
