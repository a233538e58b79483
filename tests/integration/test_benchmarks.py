"""The scripts of benchmarks/: the subset of hard pairs, the compared training loops, and the GPU benchmark."""

import faulthandler
import gc
import importlib.util
import json
import sys
import time
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.data import DataLoader

from benchmarks import gpu, hard_pairs, training
from benchmarks.common import endless, import_d2l, make_start, measure
from benchmarks.stages import Skipped, Stage, describe, run_stages
from bert_snli.data.snli import load_snli
from bert_snli.modeling.labels import D2L_LABELS


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch):
    """Run `main()` of a script of benchmarks/ in this process, with the given command-line arguments."""

    def run(script: ModuleType, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, arguments)])
        script.main()

    return run


def test_hard_pairs_are_those_that_hypothesis_only_classifier_gets_wrong(tmp_path, run_script, capsys):
    """Each label has its own word in the training data; two dev pairs have the word of another label."""
    words = dict(zip(D2L_LABELS, ("outside", "sleeping", "tall"), strict=True))
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
    run_script(hard_pairs, tmp_path, hard, "--split", "validation")
    rows = [json.loads(line) for line in hard.read_text().splitlines()]
    assert [(row["label"], row["hypothesis"]) for row in rows] == [
        ("contradiction", "Somebody is outside ."),
        ("entailment", "Somebody is sleeping ."),
    ]
    assert "hypotheses alone: 0.500 of 4 right; the other 2" in capsys.readouterr().out


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, corpus) -> Path:
    """A pretrained model with a hidden size of 16."""
    folder = tmp_path_factory.mktemp("benchmarks") / "tiny"
    make_start(folder, str(corpus), "tiny", vocabulary=300)
    return folder


@pytest.mark.parametrize("name", [*training.PEERS, *training.OURS])
def test_compared_loop_trains_beyond_one_epoch(name, tiny_model, corpus):
    if name.startswith("d2l") and importlib.util.find_spec("d2l") is None:
        pytest.skip("needs d2l")
    step, batches = training.CONTENDERS[name](str(tiny_model), str(corpus), 128)
    sizes = [step(batch) for batch in islice(batches, 8)]  # an epoch has three batches
    num_pairs = len(load_snli(str(corpus), splits=["train"]).splits["train"])
    assert len(sizes) == 8 and set(sizes) == {128, num_pairs - 2 * 128}


def test_data_loader_uses_workers_and_pinned_memory_on_gpu():
    assert training.loader_options(torch.device("cpu")) == {}
    options = training.loader_options(torch.device("cuda"))
    assert options["pin_memory"] and options["persistent_workers"] and options["num_workers"] >= 1
    loader = DataLoader(range(4), batch_size=2, **{**options, "pin_memory": False, "num_workers": 1})
    assert [batch.tolist() for batch in islice(endless(loader), 4)] == [[0, 1], [2, 3]] * 2


def test_compiled_model_is_compared_in_both_precisions():
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
BLOCKED = ["torchvision", "PIL", "requests", "IPython", "matplotlib", "matplotlib_inline", "scipy", "scipy.spatial"]


@pytest.mark.parametrize("pandas", ["missing", "installed"])
def test_d2l_imports_without_its_unused_dependencies(pandas: str, tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "d2l").mkdir()
    (tmp_path / "d2l" / "torch.py").write_text(D2L_IMPORTS)
    monkeypatch.syspath_prepend(tmp_path)
    data_frame = None if pandas == "missing" else importlib.import_module("pandas").DataFrame
    blocked = [*BLOCKED, "pandas"] if pandas == "missing" else BLOCKED
    for name in [*blocked, "d2l", "d2l.torch"]:
        monkeypatch.setitem(sys.modules, name, None)  # an import of the module raises ModuleNotFoundError
    for name in ("d2l", "d2l.torch"):  # these can be imported, and the teardown removes them
        del sys.modules[name]
    assert import_d2l().pd.DataFrame is data_frame
    assert [name for name in blocked if name in sys.modules] == []


def test_measure_counts_examples_after_warm_up():
    calls: list[float] = []

    def step() -> int:
        calls.append(time.perf_counter())
        time.sleep(0.005)
        return 7

    measured = measure(step, 0.03, warm_up=2)
    assert measured["examples"] == 7 * (len(calls) - 2)
    assert measured["seconds"] >= 0.03 and measured["examples_per_second"] <= 7 / 0.005


def succeed(subject):
    yield {"value": subject, "ok": True}


def fail(subject):
    yield {"value": 1}
    raise torch.OutOfMemoryError("no memory | for 8 TiB")


def give_wrong_result(subject):
    yield {"value": 2, "ok": False}


def skip(subject):
    raise Skipped("d2l is not installed")
    yield


def test_other_stages_run_and_are_recorded_if_one_fails():
    saved: list[list[str]] = []
    functions = {"failing": fail, "wrong": give_wrong_result, "skipped": skip, "successful": succeed}
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


def test_stages_are_skipped_without_enough_time():
    def slow(subject):
        time.sleep(0.1)
        yield {"value": 1}
        yield {"value": 2}

    stages = [Stage("long", 10, succeed), Stage("slow", 0, slow), Stage("late", 0, succeed)]
    records = run_stages(stages, 5, deadline=time.monotonic() + 0.05, save=lambda records: None)
    assert [record["status"] for record in records] == ["skipped", "partial", "skipped"]
    assert [record["rows"] for record in records] == [[], [{"value": 1}], []]
    assert records[0]["reason"].startswith("needs about 10 s") and records[1]["reason"] == "stopped at the deadline"


@pytest.fixture
def smoke_run(run_script, monkeypatch: pytest.MonkeyPatch):
    """Run the GPU benchmark with tiny sizes on the CPU. Return the records of its stages and its Markdown report."""
    if torch.cuda.is_available():
        pytest.skip("the smoke run needs a process without a GPU")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gc.freeze()  # the stages collect garbage often, which takes long with all imported modules

    def run(output: Path, *arguments: object) -> tuple[list[dict], str]:
        run_script(gpu, "--smoke", "--output_file", output, *arguments)
        return json.loads(output.with_suffix(".json").read_text())["stages"], output.with_suffix(".md").read_text()

    with torch._dynamo.config.patch(disable=False):  # restores the value that the script changes
        yield run
    gc.unfreeze()
    faulthandler.cancel_dump_traceback_later()


def test_smoke_run_of_gpu_benchmark_completes_every_stage(tmp_path, smoke_run):
    records, report = smoke_run(tmp_path / "gpu")
    stages = {record["stage"]: record for record in records}
    assert list(stages) == [stage.name for stage in gpu.STAGES]
    assert [name for name in stages if f"\n| {name} | " not in report] == []
    d2l = stages.pop("small, d2l, fp32")
    assert d2l["status"] == "ok" or "d2l is not installed" in d2l["reason"]
    assert {name: record["reason"] for name, record in stages.items() if record["status"] != "ok"} == {}

    rows = {name: record["rows"] for name, record in stages.items()}
    assert len(rows["rates"]) == 5 and all(row["T/s"] > 0 for row in rows["rates"])
    assert len(rows["logits"]) == 3 * 4 and len(rows["evaluation logits"]) == 3
    assert all(0 < row["fp32 error"] < 1e-4 for row in rows["logits"] + rows["evaluation logits"])
    assert len(rows["gradients"]) == 3 * 4 and all(0 < row["fp32 error"] < 1e-4 for row in rows["gradients"])
    assert [row["precision"] for row in rows["losses"]] == ["no", "bf16"]
    assert all(row["second run"] and row["resumed run"] for row in rows["bits"])
    assert {"finetune", "evaluate", "predict"} <= {row.get("command") for row in rows["commands"]}
    assert all(row["operators"] > 100 and row["launches"] == 0 for row in rows["updates"])
    speeds = [row for name in rows if name.startswith(("small", "base")) for row in rows[name]]
    assert len(speeds) == 11 and all(row["examples/s"] > 0 and row["share of the peak"] > 0 for row in speeds)
    assert all(row["one pair, p50 ms"] <= row["p99 ms"] for row in rows["prediction"])
    assert all(row["examples/s"] > 0 for row in rows["pretraining"])


def test_gpu_benchmark_skips_all_stages_without_time(tmp_path, smoke_run):
    records, _ = smoke_run(tmp_path / "gpu", "--deadline", 1, "--stages", "rates", "logits")
    assert [(record["stage"], record["status"]) for record in records] == [("rates", "skipped"), ("logits", "skipped")]


def test_gpu_benchmark_without_gpu_is_an_error(run_script, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="2"):
        run_script(gpu)
    assert "there is no GPU" in capsys.readouterr().err
