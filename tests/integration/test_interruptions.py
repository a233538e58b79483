"""Runs that are stopped, killed, starved or damaged, and picked up again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bert_snli.cli import main
from bert_snli.errors import BertSnliError, Stopped
from bert_snli.evaluation.metrics import nli_metrics
from bert_snli.finetune import finetune
from bert_snli.folders import alone_in, write_whole
from bert_snli.training.checkpointing import Progress, find_damage
from bert_snli.training.finite import FiniteWatch
from bert_snli.training.objectives import Classification
from bert_snli.training.recipe import FinetuneRecipe
from tests.support import soak
from tests.support.finetuning import metrics, run_finetune, step_losses
from tests.support.processes import limit_file_size

REPOSITORY = Path(__file__).resolve().parents[2]
CHANGES = {"dropout": 0.1, "max_steps": 7, "save_steps": 2, "logging_steps": 3}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soak")
    soak.make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def start(inputs: Path) -> Path:
    return inputs / "start"


@pytest.fixture(scope="module")
def corpus(inputs: Path) -> Path:
    return inputs / "corpus"


def same_run(one: Path, other: Path) -> bool:
    return soak.differences(one, other) == []


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_runs_end_as_unharmed_ones(processes: int, inputs: Path, tmp_path: Path):
    """What `make soak` does at length."""
    for name in ("corpus", "start"):
        (tmp_path / name).symlink_to(inputs / name)
    kills = soak.soak(tmp_path, processes, 2, random.Random(processes), num_train_epochs=1)
    assert [kill.processes for kill in kills] == [processes] * 2


def begun(run: subprocess.Popen, output_dir: Path) -> None:
    """Wait for the first line of metrics."""
    limit = time.monotonic() + 120
    while not (output_dir / "metrics.jsonl").exists() or not (output_dir / "metrics.jsonl").stat().st_size:
        assert run.poll() is None and time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("processes", "signum", "code"),
    [(1, signal.SIGTERM, 143), pytest.param(2, signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_ends_a_run_after_its_step_with_a_checkpoint(
    processes: int, signum: int, code: int, start: Path, corpus: Path, tmp_path: Path
):
    changes = {"num_train_epochs": 1, "save_steps": 0}
    soak.finish(soak.begin(corpus, start, tmp_path / "whole", processes, **changes))
    run = soak.begin(corpus, start, tmp_path / "run", processes, **changes)
    begun(run, tmp_path / "run")
    run.send_signal(signum)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == code, said
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    step = checkpoint.name.split("-")[1]
    expected = (
        f"bert-snli finetune: stopped by {signal.Signals(signum).name} after step {step}; {checkpoint} is written"
    )
    assert said.splitlines()[-1].startswith(expected), said
    assert not (tmp_path / "run" / "train_results.json").exists()
    soak.finish(soak.begin(corpus, start, tmp_path / "run", processes, **changes))
    assert same_run(tmp_path / "whole", tmp_path / "run")
    assert [entry["step"] for entry in json.loads((tmp_path / "run/run.json").read_text())["resumed"]] == [int(step)]


@pytest.mark.parametrize("save_steps", [0, 4])
def test_a_signal_within_an_evaluation_waits_for_its_end(
    save_steps: int, start: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also where a checkpoint of that step is there already: then the evaluation is done anew."""
    changes = {**CHANGES, "save_steps": save_steps}
    run_finetune(start, corpus, tmp_path / "whole", **changes)

    def signal_and_measure(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return nli_metrics(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("bert_snli.finetune.nli_metrics", signal_and_measure)
        with pytest.raises(Stopped, match="stopped by SIGTERM after step 4; .*checkpoint-4 is written"):
            run_finetune(start, corpus, tmp_path / "run", **changes)
    run_finetune(start, corpus, tmp_path / "run", **changes, resume_from_checkpoint="auto")
    assert same_run(tmp_path / "whole", tmp_path / "run")


def test_a_second_ctrl_c_does_not_wait(start: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Impatient(Classification):
        def __call__(self, *arguments):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("it waited")

    monkeypatch.setattr("bert_snli.finetune.Classification", Impatient)
    with pytest.raises(KeyboardInterrupt):
        run_finetune(start, corpus, tmp_path / "run", **CHANGES)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a truncated model": ("model.safetensors", truncate),
    "a flipped bit": ("optimizer.bin", flip),
    "a lost file": ("random_states_0.pkl", Path.unlink),
    "no progress": ("progress.json", Path.unlink),
    "half a list": ("checksums.json", truncate),
    "no list": ("checksums.json", Path.unlink),
    "an empty list": ("checksums.json", lambda path: path.write_text("{}")),
    "a list of another kind": ("checksums.json", lambda path: path.write_text("[1]")),
    "a damaged best model": ("kept.safetensors", flip),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: str, start: Path, corpus: Path, tmp_path: Path, capsys
):
    name, harm = DAMAGES[damage]
    run_finetune(start, corpus, tmp_path / "whole", **CHANGES)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run" / "train_results.json").unlink()
    harm(tmp_path / "run" / "checkpoint-6" / name)
    (tmp_path / "run" / ".checkpoint-8.partial").mkdir()  # what a kill within a write leaves
    run_finetune(start, corpus, tmp_path / "run", **CHANGES, resume_from_checkpoint="auto")
    said = capsys.readouterr().err
    assert f"{tmp_path / 'run' / 'checkpoint-6'}: damaged" in said and "going on from checkpoint-4" in said
    assert same_run(tmp_path / "whole", tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*partial*"))
    assert all(find_damage(folder) is None for folder in (tmp_path / "run").glob("checkpoint-*"))


def test_a_renamed_checkpoint_is_told(start: Path, corpus: Path, tmp_path: Path, capsys):
    run_finetune(start, corpus, tmp_path / "run", **CHANGES)
    (tmp_path / "run" / "train_results.json").unlink()
    (tmp_path / "run" / "checkpoint-6").rename(tmp_path / "run" / "checkpoint-9")
    run_finetune(start, corpus, tmp_path / "run", **CHANGES, resume_from_checkpoint="auto")
    assert "checkpoint-9: damaged (it is checkpoint-6, renamed)" in capsys.readouterr().err


def test_where_all_are_damaged_nothing_is_started(start: Path, corpus: Path, tmp_path: Path):
    run_finetune(start, corpus, tmp_path / "run", **CHANGES)
    for folder in (tmp_path / "run").glob("checkpoint-*"):
        truncate(folder / "model.safetensors")
    before = metrics(tmp_path / "run")
    with pytest.raises(BertSnliError, match=r"checkpoint-6: damaged .*checkpoint-4: damaged .*start anew: "):
        run_finetune(start, corpus, tmp_path / "run", **CHANGES, resume_from_checkpoint="auto")
    assert metrics(tmp_path / "run") == before


def test_auto_begins_a_run_that_has_not_begun_and_refuses_a_finished_one(start: Path, corpus: Path, tmp_path: Path):
    changes = {**CHANGES, "save_steps": 0, "resume_from_checkpoint": "auto"}
    run_finetune(start, corpus, tmp_path / "run", **changes)
    with pytest.raises(BertSnliError, match="already holds files"):
        run_finetune(start, corpus, tmp_path / "run", **changes)
    (tmp_path / "run" / "train_results.json").unlink()  # killed before its end, and before any checkpoint
    run_finetune(start, corpus, tmp_path / "run", **changes)
    assert (tmp_path / "run" / "train_results.json").exists()


def test_another_length_is_taken_and_told(start: Path, corpus: Path, tmp_path: Path, capsys):
    run_finetune(start, corpus, tmp_path / "run", **CHANGES)
    run_finetune(start, corpus, tmp_path / "run", **{**CHANGES, "max_steps": 8}, resume_from_checkpoint="auto")
    assert "it was made with max_steps 7, not max_steps 8: the same batches" in capsys.readouterr().err
    assert len(step_losses(tmp_path / "run")) == 4 and metrics(tmp_path / "run")[-1]["step"] == 8


@pytest.mark.parametrize("max_steps", [5, 6])
def test_a_length_that_is_behind_is_refused(max_steps: int, start: Path, corpus: Path, tmp_path: Path):
    run_finetune(start, corpus, tmp_path / "run", **CHANGES)
    changes = {**CHANGES, "max_steps": max_steps, "resume_from_checkpoint": "auto"}
    with pytest.raises(BertSnliError, match=f"checkpoint-6: is as far as max_steps {max_steps} goes; give more"):
        run_finetune(start, corpus, tmp_path / "run", **changes)


def test_an_older_checkpoint_that_is_named_takes_the_run_back(start: Path, corpus: Path, tmp_path: Path, capsys):
    run_finetune(start, corpus, tmp_path / "whole", **CHANGES)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    wanted = str(tmp_path / "run" / "checkpoint-4")
    run_finetune(start, corpus, tmp_path / "run", **CHANGES, resume_from_checkpoint=wanted)
    said = capsys.readouterr().err
    assert "going on from checkpoint-4" in said and "checkpoint-6: removed" in said
    assert same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("what", ["labels", "evaluation"])
def test_a_run_is_not_resumed_with_other_data(what: str, start: Path, corpus: Path, tmp_path: Path):
    shutil.copytree(corpus, tmp_path / "corpus")
    run_finetune(start, tmp_path / "corpus", tmp_path / "run", **CHANGES)
    file = tmp_path / "corpus" / f"snli_1.0_{'train' if what == 'labels' else 'dev'}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    turned = {"entailment": "neutral", "neutral": "contradiction", "contradiction": "entailment", "-": "-"}
    file.write_text("".join(json.dumps({**row, "gold_label": turned[row["gold_label"]]}) + "\n" for row in rows))
    with pytest.raises(BertSnliError, match="checkpoint-6: was made of other pairs"):
        run_finetune(start, tmp_path / "corpus", tmp_path / "run", **CHANGES, resume_from_checkpoint="auto")


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(start: Path, corpus: Path, tmp_path: Path):
    """A limit on the size of files stands in for the disk: the system answers a write in the same way."""
    changes = {"max_train_samples": 640, "num_train_epochs": 1, "save_steps": 5, "logging_steps": 1}
    soak.finish(soak.begin(corpus, start, tmp_path / "whole", 1, **changes))
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-10")
    (tmp_path / "run" / "train_results.json").unlink()
    options = {
        "model_name_or_path": start,
        "dataset_name_or_path": corpus,
        "output_dir": tmp_path / "run",
        "resume_from_checkpoint": "auto",
        **soak.OPTIONS,
        **changes,
    }
    command = [sys.executable, "-m", "bert_snli.cli", "finetune"]
    done = subprocess.run(
        [*command, *(str(word) for name, value in options.items() for word in (f"--{name}", value))],
        preexec_fn=limit_file_size,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": os.environ.get("HF_DATASETS_CACHE", "")},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert "cannot be written" in line and "make room" in line, line
    assert find_damage(tmp_path / "run" / "checkpoint-5") is None
    assert not list((tmp_path / "run").glob(".checkpoint-*"))
    soak.finish(soak.begin(corpus, start, tmp_path / "run", 1, **changes))
    assert same_run(tmp_path / "whole", tmp_path / "run")


def test_whatever_cannot_be_written_is_said_in_one_line(start: Path, corpus: Path, tmp_path: Path):
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(BertSnliError, match=r"--output_dir .*run: cannot be written \(Is a directory\); name another"):
        run_finetune(start, corpus, tmp_path / "run", **CHANGES, overwrite_output_dir=True)


def test_the_best_model_so_far_comes_back_with_a_checkpoint(start: Path, corpus: Path, tmp_path: Path):
    """Whatever lies in the output folder by then: it may be of steps that are done anew."""
    changes = {**CHANGES, "max_train_samples": 64, "max_steps": 6, "save_total_limit": 9, "learning_rate": 1e-3}
    run_finetune(start, corpus, tmp_path / "run", **changes)  # two steps an epoch
    kept = (tmp_path / "run" / "checkpoint-4" / "kept.safetensors").read_bytes()
    (tmp_path / "run" / "model.safetensors").write_bytes(b"of later steps")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    epochs = json.loads((tmp_path / "run" / "checkpoint-4" / "progress.json").read_text())["epochs"]
    assert len(epochs) == 1  # written before the second evaluation
    finetune_until_loaded(start, corpus, tmp_path / "run", changes)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == kept


def finetune_until_loaded(start: Path, corpus: Path, output_dir: Path, changes: dict) -> None:
    """Resume, and stop by a fault as soon as training would go on."""

    class Loaded(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:

        def stop(self):
            raise Loaded

        patch.setattr("bert_snli.training.loop.TrainingLoop.run", stop)
        with pytest.raises(Loaded):
            run_finetune(start, corpus, output_dir, **changes, resume_from_checkpoint="auto")


@pytest.mark.slow
def test_another_number_of_processes_goes_on_with_the_same_batches(start: Path, corpus: Path, tmp_path: Path):
    changes = {"dropout": 0.0, "max_train_samples": 640, "num_train_epochs": 1, "save_steps": 4, "logging_steps": 1}
    soak.finish(soak.begin(corpus, start, tmp_path / "whole", 1, **changes))
    soak.finish(soak.begin(corpus, start, tmp_path / "run", 2, **changes))
    for name in ("checkpoint-8", "train_results.json"):
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run = soak.begin(corpus, start, tmp_path / "run", 1, **changes)
    said, _ = run.communicate()
    assert run.returncode == 0, said
    assert "going on from checkpoint-4" in said
    assert "it was made with num_processes 2, not num_processes 1: the same batches, but from here on" in said
    np.testing.assert_allclose(step_losses(tmp_path / "run"), step_losses(tmp_path / "whole"), rtol=1e-5)


@pytest.mark.slow
def test_four_processes_resume_to_the_bit(start: Path, corpus: Path, tmp_path: Path):
    """More than two add up their gradients in an order, which must not change."""
    changes = {"max_train_samples": 640, "num_train_epochs": 1, "save_steps": 4, "logging_steps": 1}
    soak.finish(soak.begin(corpus, start, tmp_path / "whole", 4, **changes))
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    (tmp_path / "run" / "train_results.json").unlink()
    soak.finish(soak.begin(corpus, start, tmp_path / "run", 4, **changes))
    assert same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_evaluation_is_the_same_to_the_last_digit_on_however_many_processes(start: Path, corpus: Path, tmp_path: Path):
    changes = {"max_eval_samples": 301, "max_steps": 1, "learning_rate": 1e-30, "per_device_eval_batch_size": 32}
    for processes in (1, 2, 4):
        soak.finish(soak.begin(corpus, start, tmp_path / str(processes), processes, **changes))
    one, *others = (metrics(tmp_path / str(processes))[-1] for processes in (1, 2, 4))
    for other in others:
        assert {name: one[name] for name in one if "eval" in name} == {n: other[n] for n in other if "eval" in n}


def launch_two(module: str, start: Path, corpus: Path, output_dir: Path, *more: object) -> subprocess.Popen:
    """Two processes of a module of the tests that stands in for `bert_snli.finetune`."""
    program = (
        f"import sys; from bert_snli import launch; from tests.support import {module}; "
        f"sys.exit(launch.main({module}, sys.argv[1:]))"
    )
    where = ["--model_name_or_path", start, "--dataset_name_or_path", corpus, "--output_dir", output_dir, *more]
    return subprocess.Popen(
        [sys.executable, "-c", program, "--num_processes", "2", *map(str, where)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others_and_is_heard(start: Path, corpus: Path, tmp_path: Path):
    run = launch_two("failing_process", start, corpus, tmp_path / "run")
    _, said = run.communicate(timeout=100)
    assert run.returncode == 1
    assert said.count("Traceback") == 1, said
    planted, missed = said.index("RuntimeError: a planted fault"), said.find("lost another process")
    assert missed == -1 or planted < missed, said


@pytest.mark.slow
def test_a_second_ctrl_c_reaches_every_process(
    start: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first one they would wait for the end of the evaluation with, however long, and not be killed meanwhile."""
    evaluating = tmp_path / "evaluating"
    evaluating.mkdir()
    monkeypatch.setenv("EVALUATING", str(evaluating))
    run = launch_two("slow_evaluation", start, corpus, tmp_path / "run", "--max_train_samples", 64)
    begun(run, tmp_path / "run")
    limit = time.monotonic() + 60
    while len(list(evaluating.iterdir())) < 2:  # before, the processes would stop after their update
        assert run.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    time.sleep(1)
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=25)  # the launcher's own way would take 30 seconds
    assert run.returncode == 130 and "Traceback" not in said, said


def test_a_batch_without_a_finite_loss_is_named(start: Path, corpus: Path, tmp_path: Path):
    shutil.copytree(start, tmp_path / "start")
    weights = load_file(tmp_path / "start" / "model.safetensors")
    tokenizer = json.loads((tmp_path / "start" / "tokenizer.json").read_text())
    weights["bert.embeddings.word_embeddings.weight"][tokenizer["model"]["vocab"]["guitar"]] = torch.nan
    save_file(weights, tmp_path / "start" / "model.safetensors", metadata={"format": "pt"})
    rows = [json.loads(line) for line in (corpus / "snli_1.0_train.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["gold_label"] != "-"]
    sick = [i for i, row in enumerate(rows[:97]) if "guitar" in (row["sentence1"] + row["sentence2"]).lower()]
    assert 0 < len(sick) < 97
    changes = {"train_batch_size": 97, "text_source": "raw", "save_steps": 2}
    with pytest.raises(BertSnliError, match=r"the loss is not finite at step 1 \(batch 1 of epoch 1, row"):
        run_finetune(tmp_path / "start", corpus, tmp_path / "run", **changes)
    found = json.loads((tmp_path / "run" / "non_finite.json").read_text())
    assert found["rows_without_a_finite_loss"] and sorted(found["rows_without_a_finite_loss"]) == sick
    assert sorted(found["rows"]) == list(range(97))


def test_where_a_gpu_is_not_waited_for_no_row_is_accused(tmp_path: Path):
    """By then the weights have been stepped along the gradient, and every row's loss is no number."""
    watch = FiniteWatch(lambda row: torch.tensor(torch.nan), tmp_path, at_once=False)
    for step, value in enumerate([1.0, torch.nan, torch.nan]):
        watch.add("loss", torch.tensor(value), np.arange(4), Progress(step=step, batch=step))
    with pytest.raises(
        BertSnliError, match=r"not finite at step 2 \(batch 2 of epoch 1, its 4 rows together; .*search"
    ):
        watch.look()
    assert json.loads((tmp_path / "non_finite.json").read_text())["rows_without_a_finite_loss"] == []


class NoGradient(Classification):
    """Its loss is a number, its gradient is not."""

    def __call__(self, *arguments):
        loss, sums = super().__call__(*arguments)
        return loss + torch.sqrt(loss * 0), sums


@pytest.mark.parametrize(
    ("detect_anomalies", "message"),
    [
        (False, r"the gradient is not finite at step 1 \(batch 1 of epoch 1, its 32 rows together"),
        (True, r"--detect_anomalies: Function '\w+' returned nan .* The warning above"),
    ],
)
def test_a_gradient_that_is_no_number_is_not_stepped_along(
    detect_anomalies: bool, message: str, start: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bert_snli.finetune.Classification", NoGradient)
    with pytest.raises(BertSnliError, match=message):
        run_finetune(start, corpus, tmp_path / "run", detect_anomalies=detect_anomalies)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_two_runs_do_not_share_a_folder(start: Path, corpus: Path, tmp_path: Path, capsys):
    (tmp_path / "run").mkdir()
    command = [
        "finetune",
        "--model_name_or_path",
        start,
        "--dataset_name_or_path",
        corpus,
        "--output_dir",
        tmp_path / "run",
    ]
    with alone_in(tmp_path / "run"):
        code = main([*map(str, command), "--overwrite_output_dir", "--max_steps", "1"])
    assert code == 2 and "another run is writing there" in capsys.readouterr().err


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path):
    write_whole(tmp_path / "file", "first")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "file", "second \ud800")
    assert (tmp_path / "file").read_text() == "first"


def test_training_stops_where_it_no_longer_gets_better(start: Path, corpus: Path, tmp_path: Path):
    changes = {"max_steps": -1, "num_train_epochs": 9, "learning_rate": 1e-30, "early_stopping_patience": 2}
    finetune(
        FinetuneRecipe(
            str(start), str(corpus), str(tmp_path / "run"), max_train_samples=64, max_eval_samples=30, **changes
        )
    )
    evaluations = [entry for entry in metrics(tmp_path / "run") if "eval_loss" in entry]
    assert [entry["epoch"] for entry in evaluations] == [1, 2, 3]
    assert json.loads((tmp_path / "run" / "train_results.json").read_text())["kept_epoch"] == 1
