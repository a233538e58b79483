"""Runs that are stopped, killed or damaged, and their resumption."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from bert_snli.cli import main
from bert_snli.errors import BertSnliError, Stopped
from bert_snli.evaluation.metrics import nli_metrics
from bert_snli.files import lock_folder
from bert_snli.training.checkpointing import describe_damage
from bert_snli.training.objectives import ClassificationObjective
from tests.support import soak
from tests.support.finetuning import find_differences, read_metrics, run_finetune
from tests.support.processes import REPOSITORY, limit_file_size
from tests.support.training_processes import command_line, start_finetuning

pytestmark = pytest.mark.usefixtures("without_plots")

# 97 rows in batches of 32: epochs of 4 steps, checkpoints after steps 4 and 6, the second in the middle of an epoch.
CHANGES = {"dropout": 0.1, "max_steps": 7, "save_steps": 2, "logging_steps": 3}
EIGHT_STEPS = {"max_train_samples": 250, "max_steps": 8, "save_steps": 3}


@pytest.fixture(scope="module")
def uninterrupted(base_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with `CHANGES`."""
    output_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    run_finetune(base_model, corpus, output_dir, **CHANGES)
    return output_dir


@pytest.fixture
def run(uninterrupted: Path, tmp_path: Path) -> Path:
    """A copy of `uninterrupted`, as if it had been killed after its last checkpoint."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    (tmp_path / "run" / "train_results.json").unlink()
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_resume_is_bit_exact_after_sigkill_at_random_moments(num_processes: int, tmp_path: Path):
    """The short form of `make soak`."""
    corpus, base_model = soak.make_inputs(tmp_path, num_rows=1200)
    chance = random.Random(num_processes)
    kills = soak.soak(corpus, base_model, tmp_path, num_processes, 6, chance, max_train_samples=960, num_train_epochs=2)
    assert [kill.num_processes for kill in kills] == [num_processes] * 6
    assert any(kill.newest_checkpoint for kill in kills)


@pytest.fixture
def start_command() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start `bert-snli finetune`. `module` of `tests.support` replaces `bert_snli.finetune` in the processes.

    Processes that are still running at the end of the test are killed.
    """
    started = []

    def start(num_processes: int, arguments: list[str], module: str | None = None) -> subprocess.Popen:
        command = ["-m", "bert_snli.cli", "finetune"]
        if module:
            program = f"from tests.support import {module}; sys.exit(launch.main({module}, sys.argv[1:]))"
            command = ["-c", f"import sys; from bert_snli import launch; {program}"]
        process = subprocess.Popen(
            [sys.executable, *command, "--num_processes", str(num_processes), *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()
            process.communicate()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.005)


def has_metrics(output_dir: Path) -> bool:
    file = output_dir / "metrics.jsonl"
    return file.exists() and file.stat().st_size > 0


@pytest.mark.parametrize(
    ("num_processes", "signum", "code"),
    [
        pytest.param(1, signal.SIGTERM, 143, id="SIGTERM"),
        pytest.param(2, signal.SIGINT, 130, id="SIGINT-two-processes", marks=pytest.mark.slow),
    ],
)
def test_signal_stops_a_run_with_a_checkpoint_and_resume_is_bit_exact(
    num_processes: int, signum: int, code: int, start_command, base_model: Path, corpus: Path, tmp_path: Path
):
    changes = {"dropout": 0.1, "max_train_samples": 250, "train_batch_size": 8, "max_steps": 200}
    run = tmp_path / "run"
    process = start_command(num_processes, command_line(base_model, corpus, run, **changes))
    wait_until(lambda: has_metrics(run), process)
    process.send_signal(signum)
    _, printed = process.communicate(timeout=100)
    assert process.returncode == code, printed
    (checkpoint,) = run.glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    message = f"bert-snli finetune: stopped by {signal.Signals(signum).name} after step {step}; {checkpoint} is written"
    assert printed.splitlines()[-1].startswith(message), printed
    assert step < 200 and not (run / "train_results.json").exists()
    for output_dir in (tmp_path / "uninterrupted", run):
        if num_processes == 1:
            run_finetune(base_model, corpus, output_dir, **changes, resume_from_checkpoint="auto")
        else:
            start_finetuning(base_model, corpus, output_dir, num_processes, **changes).wait()
    assert find_differences(tmp_path / "uninterrupted", run) == []
    assert [entry["step"] for entry in json.loads((run / "run.json").read_text())["resumed"]] == [step]


@pytest.mark.parametrize("save_steps", [0, 4])
def test_signal_during_an_evaluation_stops_the_run_after_the_evaluation(
    save_steps: int, base_model: Path, corpus: Path, uninterrupted: Path, tmp_path: Path, monkeypatch
):
    """With save_steps=4 there already is a checkpoint of that step; the resumed run evaluates again."""
    changes = {**CHANGES, "save_steps": save_steps}

    def signal_and_measure(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return nli_metrics(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("bert_snli.finetune.nli_metrics", signal_and_measure)
        with pytest.raises(Stopped, match="stopped by SIGTERM after step 4; .*checkpoint-4 is written"):
            run_finetune(base_model, corpus, tmp_path / "run", **changes)
    run_finetune(base_model, corpus, tmp_path / "run", **changes, resume_from_checkpoint="auto")
    assert find_differences(uninterrupted, tmp_path / "run") == []


def test_second_sigint_stops_a_run_without_a_checkpoint(base_model: Path, corpus: Path, tmp_path: Path, monkeypatch):
    class SignalTwice(ClassificationObjective):
        def __call__(self, *arguments):
            signal.raise_signal(signal.SIGINT)
            time.sleep(1.1)  # a second SIGINT within a second is the launcher's copy of the first
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second signal was ignored")

    monkeypatch.setattr("bert_snli.finetune.ClassificationObjective", SignalTwice)
    with pytest.raises(KeyboardInterrupt):
        run_finetune(base_model, corpus, tmp_path / "run", **CHANGES)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        pytest.param("model.safetensors", truncate, "the checksum of model.safetensors is wrong", id="truncated-model"),
        pytest.param("optimizer.bin", flip_bit, "the checksum of optimizer.bin is wrong", id="flipped-bit"),
        pytest.param(
            "saved_model.safetensors", flip_bit, "the checksum of saved_model.safetensors is wrong", id="best-model"
        ),
        pytest.param("random_states_0.pkl", Path.unlink, "random_states_0.pkl is missing", id="missing-file"),
        pytest.param("progress.json", Path.unlink, "progress.json is missing", id="missing-progress"),
        pytest.param("checksums.json", Path.unlink, "checksums.json is missing", id="missing-checksums"),
        pytest.param("checksums.json", truncate, "checksums.json or a file in it cannot be read", id="half-list"),
        pytest.param("checksums.json", lambda path: path.write_text("{}"), "lists no files", id="empty-checksums"),
        pytest.param("checksums.json", lambda path: path.write_text("[1]"), "lists no files", id="list-of-checksums"),
        pytest.param(
            ".",
            lambda path: path.rename(path.parent / "checkpoint-9"),
            "written as checkpoint-6",
            id="renamed",
        ),
    ],
)
def test_describe_damage_names_the_damaged_file_of_a_checkpoint(name: str, damage: Callable, message: str, run: Path):
    assert describe_damage(run / "checkpoint-6") is None
    damage(run / "checkpoint-6" / name)
    (checkpoint,) = set(run.glob("checkpoint-*")) - {run / "checkpoint-4"}
    assert message in describe_damage(checkpoint)


def test_resume_from_the_checkpoint_before_a_damaged_one_is_bit_exact(
    base_model: Path, corpus: Path, uninterrupted: Path, run: Path, caplog: pytest.LogCaptureFixture
):
    flip_bit(run / "checkpoint-6" / "optimizer.bin")
    (run / ".checkpoint-8.partial").mkdir()  # as after a kill while a checkpoint was written
    run_finetune(base_model, corpus, run, **CHANGES, resume_from_checkpoint="auto")
    message = f"{run / 'checkpoint-6'}: damaged (the checksum of optimizer.bin is wrong); resuming from checkpoint-4"
    assert message in caplog.messages
    assert find_differences(uninterrupted, run) == []
    assert not list(run.glob(".*partial*"))
    assert all(describe_damage(folder) is None for folder in run.glob("checkpoint-*"))


def test_resume_is_refused_when_all_checkpoints_are_damaged(base_model: Path, corpus: Path, run: Path):
    for folder in run.glob("checkpoint-*"):
        truncate(folder / "model.safetensors")
    before = read_metrics(run)
    with pytest.raises(
        BertSnliError, match=r"checkpoint-6: damaged .*checkpoint-4: damaged .*set overwrite_output_dir to start again"
    ):
        run_finetune(base_model, corpus, run, **CHANGES, resume_from_checkpoint="auto")
    assert read_metrics(run) == before


def test_auto_restarts_a_run_without_checkpoints_and_refuses_a_finished_one(
    base_model: Path, corpus: Path, uninterrupted: Path, run: Path
):
    changes = {**CHANGES, "save_steps": 0, "resume_from_checkpoint": "auto"}
    for folder in run.glob("checkpoint-*"):
        shutil.rmtree(folder)
    run_finetune(base_model, corpus, run, **changes)
    assert find_differences(uninterrupted, run) == []
    with pytest.raises(BertSnliError, match="already holds files"):
        run_finetune(base_model, corpus, run, **changes)


def test_resume_with_a_larger_max_steps_continues_and_says_so(base_model: Path, corpus: Path, run: Path, caplog):
    run_finetune(base_model, corpus, run, **{**CHANGES, "max_steps": 8}, resume_from_checkpoint="auto")
    assert "resume is not bit-exact: max_steps was 7, is 8; rounding" in caplog.text
    assert [entry["step"] for entry in read_metrics(run)] == [3, 4, 4, 6, 8, 8]


@pytest.mark.parametrize("max_steps", [5, 6])
def test_resume_is_refused_when_max_steps_is_reached(max_steps: int, base_model: Path, corpus: Path, run: Path):
    changes = {**CHANGES, "max_steps": max_steps, "resume_from_checkpoint": "auto"}
    with pytest.raises(BertSnliError, match=f"checkpoint-6: is at step 6 of {max_steps}; increase max_steps"):
        run_finetune(base_model, corpus, run, **changes)


def test_resume_from_an_older_checkpoint_removes_the_later_ones_and_is_bit_exact(
    base_model: Path, corpus: Path, uninterrupted: Path, run: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "bert_snli")
    run_finetune(base_model, corpus, run, **CHANGES, resume_from_checkpoint=str(run / "checkpoint-4"))
    assert "resuming from checkpoint-4" in caplog.messages and "checkpoint-6: removed" in caplog.text
    assert find_differences(uninterrupted, run) == []


@pytest.mark.parametrize("split", ["train", "dev"])
def test_resume_is_refused_with_other_labels(split: str, base_model: Path, corpus: Path, tmp_path: Path):
    shutil.copytree(corpus, tmp_path / "corpus")
    changes = {"max_steps": 3, "save_steps": 2}
    run_finetune(base_model, tmp_path / "corpus", tmp_path / "run", **changes)
    file = tmp_path / "corpus" / f"snli_1.0_{split}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    other = {"entailment": "neutral", "neutral": "contradiction", "contradiction": "entailment", "-": "-"}
    file.write_text("".join(json.dumps({**row, "gold_label": other[row["gold_label"]]}) + "\n" for row in rows))
    with pytest.raises(BertSnliError, match="checkpoint-2: was written with other pairs"):
        run_finetune(base_model, tmp_path / "corpus", tmp_path / "run", **changes, resume_from_checkpoint="auto")


@pytest.mark.slow
def test_full_disk_leaves_the_previous_checkpoint_to_resume_from(base_model: Path, corpus: Path, tmp_path: Path):
    """A limit on the size of files replaces the full disk: the system refuses a write in the same way."""
    changes = {**EIGHT_STEPS, "dropout": 0.1, "max_steps": 7}  # no evaluation before the checkpoint of step 6
    run_finetune(base_model, corpus, tmp_path / "uninterrupted", **changes)
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "uninterrupted", run)
    shutil.rmtree(run / "checkpoint-6")
    (run / "train_results.json").unlink()
    printed = start_finetuning(base_model, corpus, run, prepare=limit_file_size, **changes).wait(code=2)
    message = printed.splitlines()[-1]
    assert f"{run / 'checkpoint-6'}: cannot be written" in message, printed
    assert "free disk space and resume from checkpoint-3" in message, printed
    assert describe_damage(run / "checkpoint-3") is None
    assert not list(run.glob(".checkpoint-*"))
    run_finetune(base_model, corpus, run, **changes, resume_from_checkpoint="auto")
    assert find_differences(tmp_path / "uninterrupted", run) == []


def test_output_folder_that_cannot_be_written_is_reported_in_one_line(base_model: Path, corpus: Path, tmp_path: Path):
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(BertSnliError, match=r"run: cannot be written \(Is a directory\); give another folder"):
        run_finetune(base_model, corpus, tmp_path / "run", **CHANGES, overwrite_output_dir=True)


def test_resume_restores_the_best_model_of_the_checkpoint(base_model: Path, corpus: Path, tmp_path: Path, monkeypatch):
    """The model in the output folder may be of later steps, which the resumed run repeats."""
    changes = {**CHANGES, "max_train_samples": 64, "max_steps": 6, "save_total_limit": 9, "learning_rate": 1e-3}
    run = tmp_path / "run"
    run_finetune(base_model, corpus, run, **changes)  # two steps an epoch
    best_model = (run / "checkpoint-4" / "saved_model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(b"of later steps")
    shutil.rmtree(run / "checkpoint-6")
    epochs = json.loads((run / "checkpoint-4" / "progress.json").read_text())["epochs"]
    assert len(epochs) == 1  # written before the second evaluation

    class TrainingBegins(Exception):
        pass

    def stop(self):
        raise TrainingBegins

    monkeypatch.setattr("bert_snli.training.loop.TrainingLoop.run", stop)
    with pytest.raises(TrainingBegins):
        run_finetune(base_model, corpus, run, **changes, resume_from_checkpoint="auto")
    assert (run / "model.safetensors").read_bytes() == best_model


@pytest.mark.slow
def test_resume_with_another_number_of_processes_uses_the_same_batches(
    base_model: Path, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    run = tmp_path / "run"
    expected = run_finetune(base_model, corpus, tmp_path / "one", **EIGHT_STEPS)
    start_finetuning(base_model, corpus, run, 2, **EIGHT_STEPS).wait()
    shutil.rmtree(run / "checkpoint-6")
    (run / "train_results.json").unlink()
    caplog.set_level("INFO", "bert_snli")
    resumed = run_finetune(base_model, corpus, run, **EIGHT_STEPS, resume_from_checkpoint="auto")
    assert "resuming from checkpoint-3" in caplog.messages
    assert "not bit-exact: num_processes was 2, is 1" in caplog.text
    np.testing.assert_allclose(resumed, expected, rtol=1e-5)


@pytest.mark.slow
def test_resume_is_bit_exact_on_four_processes(base_model: Path, corpus: Path, tmp_path: Path):
    """The order in which more than two processes add their gradients must not change."""
    changes = {**EIGHT_STEPS, "dropout": 0.1}
    run = tmp_path / "run"
    start_finetuning(base_model, corpus, tmp_path / "uninterrupted", 4, **changes).wait()
    shutil.copytree(tmp_path / "uninterrupted", run)
    shutil.rmtree(run / "checkpoint-6")
    (run / "train_results.json").unlink()
    start_finetuning(base_model, corpus, run, 4, **changes).wait()
    assert find_differences(tmp_path / "uninterrupted", run) == []


@pytest.mark.slow
def test_evaluation_metrics_are_equal_to_the_last_digit_on_one_two_and_four_processes(
    base_model: Path, corpus: Path, tmp_path: Path
):
    """57 pairs in batches of 8: the processes have different numbers of pairs."""
    changes = {"max_eval_samples": 57, "max_steps": 1, "learning_rate": 1e-30, "per_device_eval_batch_size": 8}
    run_finetune(base_model, corpus, tmp_path / "1", **changes)
    for num_processes in (2, 4):
        start_finetuning(base_model, corpus, tmp_path / str(num_processes), num_processes, **changes).wait()
    one, *others = (
        {name: value for name, value in read_metrics(tmp_path / str(number))[-1].items() if name.startswith("eval_")}
        for number in (1, 2, 4)
    )
    assert one.keys() == {"eval_loss", "eval_accuracy", "eval_macro_f1"}
    assert others == [one, one]


def press_ctrl_c(process: subprocess.Popen) -> None:
    """Send SIGINT to the launcher and to the processes that it started, as a terminal does."""
    for child in [*psutil.Process(process.pid).children(), process]:
        child.send_signal(signal.SIGINT)


@pytest.mark.slow
def test_failing_process_ends_the_others_and_its_traceback_is_printed_once(
    start_command, base_model: Path, corpus: Path, tmp_path: Path
):
    arguments = command_line(base_model, corpus, tmp_path / "run")
    _, printed = start_command(2, arguments, "failing_process").communicate(timeout=100)
    assert printed.count("Traceback") == 1, printed
    error, lost = (
        printed.index("RuntimeError: an error of the test"),
        printed.find("lost the connection to another process"),
    )
    assert lost == -1 or error < lost, printed


@pytest.mark.slow
def test_second_sigint_ends_all_processes_during_an_evaluation(
    start_command, base_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """After the first SIGINT the processes wait for the end of the evaluation, and nothing kills them meanwhile."""
    evaluating = tmp_path / "evaluating"
    evaluating.mkdir()
    monkeypatch.setenv("EVALUATING", str(evaluating))
    arguments = command_line(base_model, corpus, tmp_path / "run", max_steps=2)
    process = start_command(2, arguments, "slow_evaluation")
    wait_until(lambda: len(list(evaluating.iterdir())) == 2, process)
    press_ctrl_c(process)
    time.sleep(2)
    assert process.poll() is None
    press_ctrl_c(process)
    _, printed = process.communicate(timeout=25)  # torchrun would wait 30 seconds before it kills the processes
    assert process.returncode == 130 and "Traceback" not in printed, printed


class NonFiniteGradient(ClassificationObjective):
    """A finite loss with a NaN gradient."""

    def __call__(self, *arguments):
        loss, sums = super().__call__(*arguments)
        return loss + torch.sqrt(loss * 0), sums


class NonFiniteLoss(ClassificationObjective):
    """A NaN in the first loss only. The weights are NaN from then on."""

    num_calls = 0

    def __call__(self, *arguments):
        loss, sums = super().__call__(*arguments)
        NonFiniteLoss.num_calls += 1
        return (loss * torch.nan, sums * torch.nan) if NonFiniteLoss.num_calls == 1 else (loss, sums)


@pytest.mark.parametrize("objective", [NonFiniteGradient, NonFiniteLoss])
@pytest.mark.parametrize(
    "changes", [{"logging_steps": 1}, {"logging_steps": 50}, {"logging_steps": 50, "save_steps": 2}]
)
def test_non_finite_loss_or_gradient_stops_the_run_before_anything_is_saved(
    objective: type, changes: dict, base_model: Path, corpus: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("bert_snli.finetune.ClassificationObjective", objective)
    monkeypatch.setattr(NonFiniteLoss, "num_calls", 0)
    with pytest.raises(
        BertSnliError, match=r"the loss or its gradient is not finite at step \d or shortly before; lower"
    ):
        run_finetune(base_model, corpus, tmp_path / "run", **changes)
    assert not list((tmp_path / "run").rglob("model.safetensors"))


def test_second_run_in_the_same_output_folder_is_refused(base_model: Path, corpus: Path, tmp_path: Path, capsys):
    (tmp_path / "run").mkdir()
    command = ["finetune", *command_line(base_model, corpus, tmp_path / "run", overwrite_output_dir=True)]
    with lock_folder(tmp_path / "run"):
        code = main(command)
    assert code == 2 and "another run is writing there" in capsys.readouterr().err
