"""Scripts of benchmarks/: the learning curve, the hard pairs, the contenders of training, and the run on a GPU."""

import importlib.util
import json
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from benchmarks import training
from benchmarks.common import endless, make_start, measure
from benchmarks.stages import Skipped, Stage, describe, run_stages
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.fixture(scope="session")
def tiny_start(tmp_path_factory, corpus) -> Path:
    """A pretrained model, 16 wide."""
    folder = tmp_path_factory.mktemp("starts") / "tiny"
    make_start(folder, str(corpus), "tiny", vocabulary=300)
    return folder


@pytest.mark.parametrize("name", [*training.PEERS, *training.OURS])
def test_contender_trains_on_after_all_of_its_batches(name, tiny_start, corpus):
    if name.startswith("d2l") and importlib.util.find_spec("d2l") is None:
        pytest.skip("needs d2l")
    step, batches = training.CONTENDERS[name](str(tiny_start), str(corpus), 128)
    assert [step(batch) > 0 for batch in islice(batches, 8)] == [True] * 8  # an epoch has three batches


def test_workers_assemble_the_batches_of_the_plain_loop_on_a_gpu():
    assert training.loader_options(torch.device("cpu")) == {}
    options = training.loader_options(torch.device("cuda"))
    assert options["pin_memory"] and options["persistent_workers"] and options["num_workers"] >= 1
    loader = DataLoader(range(4), batch_size=2, **{**options, "pin_memory": False, "num_workers": 1})
    assert [batch.tolist() for batch in islice(endless(loader), 4)] == [[0, 1], [2, 3]] * 2


def test_compiled_model_is_measured_in_both_precisions():
    assert training.CONTENDERS["torch.compile"].keywords == {"torch_compile": True}
    assert training.CONTENDERS["torch.compile, bf16"].keywords == {"torch_compile": True, "precision": "bf16"}


D2L_IMPORTS = """\
import torch, torchvision
from PIL import Image
from torchvision import transforms
import pandas as pd
import requests
from IPython import display
from matplotlib import pyplot as plt
from matplotlib_inline import backend_inline
from scipy.spatial import distance_matrix
"""
IMPORT_D2L = """\
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, {folder!r})
from benchmarks.common import import_d2l

d2l = import_d2l()
print(d2l.pd.DataFrame, [name for name in {blocked} if name in sys.modules])
"""


@pytest.mark.parametrize("pandas", ["missing", "installed"])
def test_d2l_is_imported_where_modules_that_it_imports_are_missing(pandas, tmp_path, run_python):
    (tmp_path / "d2l").mkdir()
    (tmp_path / "d2l" / "torch.py").write_text(D2L_IMPORTS)
    blocked = ["torchvision", "PIL", "requests", "IPython", "matplotlib", "matplotlib_inline", "scipy"]
    blocked += ["pandas"] if pandas == "missing" else []
    done = run_python("-c", IMPORT_D2L.format(blocked=blocked, folder=str(tmp_path)))
    assert done.returncode == 0, done.stderr
    frame = "None" if pandas == "missing" else "<class 'pandas.DataFrame'>"
    assert done.stdout == f"{frame} []\n"


def test_measure_counts_the_examples_after_the_warm_up():
    calls: list[float] = []

    def step() -> int:
        calls.append(time.perf_counter())
        time.sleep(0.005)
        return 7

    found = measure(step, 0.03, warm_up=2)
    assert found["examples"] == 7 * (len(calls) - 2)
    assert found["seconds"] >= 0.03 and found["examples_per_second"] <= 7 / 0.005


def steady(subject):
    yield {"value": subject, "ok": True}


def failing(subject):
    yield {"value": 1}
    raise torch.OutOfMemoryError("no memory | for 8 TiB")


def wrong(subject):
    yield {"value": 2, "ok": False}


def unable(subject):
    raise Skipped("d2l is not installed")
    yield


def test_stage_that_fails_does_not_lose_the_others():
    saved: list[list[str]] = []
    functions = {"failing": failing, "wrong": wrong, "unable": unable, "steady": steady}
    stages = [Stage(name, 1, function) for name, function in functions.items()]
    records = run_stages(
        stages,
        5,
        deadline=time.monotonic() + 60,
        save=lambda records: saved.append([record["status"] for record in records]),
    )
    assert [record["status"] for record in records] == ["failed", "wrong", "skipped", "ok"]
    assert records[0]["rows"] == [{"value": 1}]
    assert "raise torch.OutOfMemoryError" in records[0]["reason"] and "8 TiB" in records[0]["reason"]
    assert records[2]["reason"] == "d2l is not installed"
    assert records[3]["rows"] == [{"value": 5, "ok": True}]
    assert saved[0] == ["running"] and saved[2] == ["failed", "running"] and len(saved) == 8
    table = describe(records)
    assert "| failing | failed | 0 | torch.OutOfMemoryError: no memory \\| for 8 TiB |" in table
    assert "## wrong\n\n| value | ok |\n| --- | --- |\n| 2 | NO |" in table


def test_stages_are_skipped_when_too_little_time_is_left():
    def slow(subject):
        time.sleep(0.1)
        yield {"value": 1}
        yield {"value": 2}

    stages = [Stage("long", 10, steady), Stage("slow", 0, slow), Stage("late", 0, steady)]
    records = run_stages(stages, 5, deadline=time.monotonic() + 0.05, save=lambda records: None)
    assert [record["status"] for record in records] == ["skipped", "partial", "skipped"]
    assert [record["rows"] for record in records] == [[], [{"value": 1}], []]
    assert records[0]["reason"].startswith("needs about 10 s") and records[1]["reason"] == "stopped at the deadline"


def test_smoke_run_measures_every_stage_of_the_gpu_benchmark(tmp_path, run_python):
    from benchmarks.gpu import STAGES

    done = run_python("benchmarks/gpu.py", "--smoke", "--output_file", tmp_path / "gpu")
    assert done.returncode == 0, done.stderr
    stages = {record["stage"]: record for record in json.loads((tmp_path / "gpu.json").read_text())["stages"]}
    assert list(stages) == [stage.name for stage in STAGES]
    table = (tmp_path / "gpu.md").read_text()
    assert [name for name in stages if f"\n| {name} | " not in table] == []
    d2l = stages.pop("small, d2l, fp32")
    assert d2l["status"] == "ok" or "d2l is not installed" in d2l["reason"]
    assert {name: record["reason"] for name, record in stages.items() if record["status"] != "ok"} == {}

    rows = {name: record["rows"] for name, record in stages.items()}
    assert len(rows["rates"]) == 5 and all(row["T/s"] > 0 for row in rows["rates"])
    assert len(rows["logits"]) == 3 * 4 and len(rows["evaluation logits"]) == 3
    assert all(0 < row["fp32 error"] < 1e-4 for row in rows["logits"] + rows["evaluation logits"])
    assert len(rows["gradients"]) == 3 * 4 and all(0 < row["fp32 error"] < 1e-4 for row in rows["gradients"])
    assert [row["precision"] for row in rows["losses"]] == ["no", "bf16"]
    assert all(0.5 < row["last"] < 1.5 for row in rows["losses"])
    assert all(row["second run"] and row["resumed run"] for row in rows["bits"])
    assert {"finetune", "evaluate", "predict"} <= {row.get("command") for row in rows["commands"]}
    assert all(row["operators"] > 100 and row["launches"] == 0 for row in rows["updates"])
    speeds = [row for name in rows if name.startswith(("small", "base")) for row in rows[name]]
    assert len(speeds) == 11 and all(row["examples/s"] > 0 and row["share of the peak"] > 0 for row in speeds)
    assert all(row["one pair, p50 ms"] <= row["p99 ms"] for row in rows["prediction"])
    assert all(row["examples/s"] > 0 for row in rows["pretraining"])


@pytest.mark.slow
def test_gpu_benchmark_skips_all_stages_without_time(tmp_path, run_python):
    arguments = ("--smoke", "--deadline", 1, "--stages", "rates", "logits", "--output_file", tmp_path / "gpu")
    done = run_python("benchmarks/gpu.py", *arguments)
    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert [(record["stage"], record["status"]) for record in records] == [("rates", "skipped"), ("logits", "skipped")]


def test_gpu_benchmark_needs_a_gpu_unless_it_is_a_smoke_run(run_python):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run_python("benchmarks/gpu.py")
    assert done.returncode == 2 and "there is no GPU" in done.stderr
