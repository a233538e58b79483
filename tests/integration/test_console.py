"""What a training run prints: progress on stderr, as a bar on a terminal and in lines elsewhere; results on stdout."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from bert_snli import finetune, pretrain
from bert_snli.training.setup import format_count
from tests.support.finetuning import BATCH, ROWS, read_metrics
from tests.support.training_processes import command_line, start_finetuning

SHORT_RUN = {"max_steps": 5, "logging_steps": 2}  # an epoch is four updates


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def expected_step_lines(output_dir: Path) -> list[str]:
    """Return the lines on the console for those of `metrics.jsonl`."""
    return [
        f"bert-snli: step {line['step']} of 5: loss {line['train_loss']:.3f}, "
        f"{line['train_samples_per_second']:,.0f} examples/s"
        for line in read_metrics(output_dir)
        if "learning_rate" in line
    ]


def test_finetune_says_what_it_does_and_prints_a_line_every_logging_steps_if_stderr_is_no_terminal(
    base_model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    run = tmp_path / "run"
    assert finetune.main(command_line(base_model, corpus, run, **SHORT_RUN)) == 0
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    rows = sum(line.startswith("{") for line in (corpus / "snli_1.0_train.jsonl").read_text().splitlines())
    num_pairs = len(finetune.load_snli(str(corpus), splits=["train"]).splits["train"])
    assert lines[0] == f"bert-snli: model: {base_model}; data: {corpus}; output folder: {run}"
    assert re.fullmatch(
        r"bert-snli: device: cpu; processes: 1; precision: fp32 \(as requested\); matmul throughput: [\d,]+ GFLOP/s",
        lines[1],
    )
    dropped = format_count(rows - num_pairs, "row")
    start = f"bert-snli: {ROWS} of {num_pairs} training pairs ({dropped} without a gold label dropped), 30 of "
    assert lines[2].startswith(start) and lines[2].endswith(" validation pairs")
    assert f"bert-snli: training: 5 updates of up to {BATCH} pairs (epochs: 1.25)" in lines
    step_lines = [line for line in lines if " step " in line]
    assert step_lines == expected_step_lines(run)
    assert [line.split()[2] for line in step_lines] == ["2", "4", "5"]
    assert "\r" not in printed.err and "%|" not in printed.err
    (result,) = printed.out.splitlines()
    assert result.startswith(f"{run}: epoch ") and " examples/s; " in result


def test_bar_shows_loss_and_examples_per_second_on_a_terminal(
    base_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert finetune.main(command_line(base_model, corpus, tmp_path / "run", **SHORT_RUN)) == 0
    bars = [part for part in re.split(r"[\r\n]", terminal.getvalue()) if part.startswith("Epoch 1: ") and "|" in part]
    (loss,) = {f"{line['train_loss']:.3f}" for line in read_metrics(tmp_path / "run") if line["step"] == 2}
    assert any(re.search(rf" 64/{ROWS} \[.* examples/s, loss={loss}\]", bar) for bar in bars), bars
    assert " step 2 of " not in terminal.getvalue()
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_pretrain_prints_counts_that_agree_with_its_limits(wiki: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    options = {"hidden_size": 16, "max_train_samples": 40, "max_eval_samples": 20, "max_steps": 1, "max_length": 40}
    arguments = {"dataset_name_or_path": wiki, "output_dir": tmp_path / "run", **options}
    assert pretrain.main([str(word) for name, value in arguments.items() for word in (f"--{name}", value)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"bert-snli: model: new weights; data: {wiki}; output folder: {tmp_path / 'run'}"
    counts = r"bert-snli: 40 training pairs, 20 validation pairs, \d+ tokens in the vocabulary"
    assert any(re.fullmatch(counts, line) for line in lines), lines
    assert any(re.fullmatch(r"bert-snli: step 1 of 1: loss \d+\.\d{3}, [\d,]+ examples/s", line) for line in lines)


@pytest.mark.slow
def test_only_the_main_process_prints_progress(base_model: Path, corpus: Path, tmp_path: Path):
    training = start_finetuning(base_model, corpus, tmp_path / "run", 2, **SHORT_RUN)
    printed = training.wait()
    assert [line for line in printed.splitlines() if " step " in line] == expected_step_lines(tmp_path / "run")
    assert "device: cpu; processes: 2; " in printed
    assert training.logs[1].read_text() == ""


@pytest.mark.parametrize(
    ("number", "total", "text"),
    [
        (89906, None, "89,906 pairs"),
        (2000, 89906, "2,000 of 89,906 pairs"),
        (300, 300, "300 pairs"),
        (1, 2, "1 of 2 pairs"),
        (1, None, "1 pair"),
        (0, None, "0 pairs"),
    ],
)
def test_counts_name_the_total_and_agree_with_the_noun(number: int, total: int | None, text: str):
    assert format_count(number, "pair", total) == text
