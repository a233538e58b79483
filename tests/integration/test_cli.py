"""The commands: help, predictions, the whole job, and errors, which are one line with exit code 2."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from torch.distributed import DistBackendError, DistNetworkError, DistStoreError

from bert_snli import finetune, launch
from bert_snli.cli.main import COMMANDS, TRAINING, build_parser, main
from bert_snli.console import EXTRA_OF_IMPORT, is_lost_connection, run
from bert_snli.data.sample import write_sample
from bert_snli.inference import load_classifier, load_tokenizer
from bert_snli.prediction import Predictor
from bert_snli.training.arguments import GROUPS, FinetuneArguments
from bert_snli.training.command_line import COMMANDS as TRAINING_COMMANDS
from bert_snli.training.command_line import (
    FINETUNE,
    LAUNCH_OPTIONS,
    LAUNCH_SWITCHES,
    REMEDIES,
    TrainingCommand,
    split_arguments,
)
from bert_snli.training.run import TrainingResult
from tests.support.classifiers import random_pairs
from tests.support.command_line import error_line
from tests.support.processes import LAUNCH, REPOSITORY

PYPROJECT = REPOSITORY / "pyproject.toml"


def parser_of(command: str) -> argparse.ArgumentParser:
    if command in TRAINING:
        return TRAINING_COMMANDS[command].build_parser()
    (subparsers,) = (action for action in build_parser()._actions if action.dest == "command")
    return subparsers.choices[command]


def printed_help(words: list[str], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [*COMMANDS, *TRAINING])
def test_help_shows_each_option_once_with_its_default_and_choices(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    printed = printed_help([command], 1000, monkeypatch, capsys)  # argparse then does not wrap the texts
    _, listed = re.split(r"(?=\n(?:positional arguments|options):\n)", printed, maxsplit=1)
    entries = [" ".join(entry.split()) for entry in re.split(r"\n  (?=\S)|\n\n", listed)]
    for action in parser_of(command)._actions:
        if action.help == argparse.SUPPRESS:
            continue
        name = ", ".join(action.option_strings) or str(action.metavar)
        (entry,) = (entry for entry in entries if re.match(rf"{name}( |$)", entry))
        assert action.help and action.help in entry
        assert action.choices is None or f"{name} {{{','.join(action.choices)}}} " in entry
        assert not (action.required and action.option_strings) or entry.endswith("(required)")
        if action.nargs != 0 and action.default not in (None, "", [], argparse.SUPPRESS):
            default = str(action.default).lower() if isinstance(action.default, bool) else action.default
            assert entry.endswith(f"(default: {default})")


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", [None, *COMMANDS, *TRAINING])
def test_help_fits_the_terminal(command: str | None, columns: int, monkeypatch: pytest.MonkeyPatch, capsys):
    printed = printed_help([command] if command else [], columns, monkeypatch, capsys)
    assert [line for line in printed.splitlines() if len(line) > columns] == []
    assert len(printed.partition("\n\n")[0].splitlines()) <= 2  # the synopsis


def test_help_lists_each_command_once_with_a_summary(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    printed = printed_help([], 80, monkeypatch, capsys)
    listed = re.findall(r"^  (\w+) +[A-Z].*\.$", printed, flags=re.MULTILINE)
    assert sorted(listed) == sorted([*COMMANDS, *TRAINING])


def test_help_of_training_has_groups(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    names = [name for names in GROUPS.values() for name in names.split()]
    expected = {field.name for command in TRAINING_COMMANDS.values() for field in fields(command.arguments_class)}
    assert sorted(names) == sorted(expected)
    printed = printed_help(["finetune"], 80, monkeypatch, capsys)
    assert printed.startswith("usage: bert-snli finetune MODEL --output_dir DIR [options]\n\n")
    sections = re.findall(r"^(\w.*):$", printed, flags=re.MULTILINE)
    assert sections == ["examples", "options", *GROUPS, "Several processes"]
    assert printed.count("(required)") == 2
    assert all(f"--{name}" in printed for name in (*LAUNCH_OPTIONS, *LAUNCH_SWITCHES))


def test_unknown_option_error_points_to_the_help_of_the_command(capsys: pytest.CaptureFixture):
    line = error_line(["evaluate", "runs/snli", "--samples", "3"], capsys)
    assert line == "bert-snli evaluate: error: --samples: unknown option; see bert-snli evaluate --help"
    line = error_line(["evaluate", "runs/snli", "runs/other"], capsys)
    assert line == "bert-snli evaluate: error: runs/other: unexpected argument; see bert-snli evaluate --help"


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("finetune m --learning_rat 1", "--learning_rat: unknown option; did you mean --learning_rate?"),
        ("finetune m --learning-rat=1", "--learning_rat: unknown option; did you mean --learning_rate?"),
        ("finetune --no_fast_forward m", "--no_fast_forward: unknown option; did you mean --fast_forward?"),
        ("finetune m --num_proceses 2", "--num_proceses: unknown option; did you mean --num_processes?"),
        ("pretrain --hub_model_id user/name", "--hub_model_id: unknown option; see bert-snli pretrain --help"),
        ("evaluate m --dataset_name snli", "--dataset_name: unknown option; use --dataset_name_or_path"),
        ("predict m --input pairs.csv", "--input: unknown option; did you mean --input_file?"),
        ("finetune m --per_device_train_batch_size 8", "use --train_batch_size, a global batch size"),
        ("finetune m --per_gpu_train_batch_size 8", "use --train_batch_size, a global batch size"),
        ("finetune m --gradient_accumulation_steps 2", "use --num_micro_batches, which splits --train_batch_size"),
        ("finetune m --evaluation_strategy epoch", "remove it; a run evaluates after each epoch"),
        ("finetune m --eval_strategy epoch", "remove it; a run evaluates after each epoch"),
        ("finetune m --do_train", "remove it; the command always trains"),
        ("finetune m --fp16", "use --mixed_precision fp16 or bf16"),
        ("finetune m --logging_dir logs", "use --report_to tensorboard"),
        ("pretrain --max_seq_length 64", "use --max_length"),
    ],
)
def test_unknown_option_error_names_the_option_to_use(words: str, remedy: str, capsys: pytest.CaptureFixture):
    assert remedy in error_line([*words.split(), "--output_dir", "o"], capsys)


@pytest.mark.parametrize("command", TRAINING_COMMANDS.values(), ids=TRAINING_COMMANDS)
def test_remedies_name_existing_options(command: TrainingCommand):
    options = command.option_names | set(LAUNCH_SWITCHES)
    for name, remedy in REMEDIES.items():
        assert name not in {field.name for field in fields(command.arguments_class)}
        assert set(re.findall(r"--(\w+)", remedy)) <= options


def test_option_of_the_launcher_is_refused_in_a_process_that_only_trains(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        FINETUNE.parse(["m", "--output_dir", "o", "--num_processes", "2"])
    assert "--num_processes: unknown option; give it to `accelerate launch`" in capsys.readouterr().err


def test_model_is_a_positional_argument_of_finetune(tmp_path: Path, capsys: pytest.CaptureFixture):
    expected = FINETUNE.parse(["--model_name_or_path", "m", "--output_dir", "o"])
    assert FINETUNE.parse(["m", "--output_dir", "o"]) == expected
    assert FINETUNE.parse(["--output_dir", "o", "m", "--push_to_hub", "false"]) == expected
    recipe = tmp_path / "recipe.yaml"
    replace(expected, model_name_or_path="other").save_recipe(recipe)
    assert FINETUNE.parse(["m", "--config", str(recipe)]) == expected
    both = error_line(["finetune", "m", "--model_name_or_path", "m", "--output_dir", "o"], capsys)
    assert "argument MODEL: not allowed with argument --model_name_or_path" in both
    assert "m: unexpected argument" in error_line(["pretrain", "m", "--output_dir", "o"], capsys)


def test_dashes_in_the_name_of_an_option_are_underscores():
    words = ["predict", "my-model", "--input-file=my-pairs.csv", "--premise", "--well-known text"]
    args = build_parser().parse_args(words)
    assert (args.model, args.input_file, args.premise) == ("my-model", Path("my-pairs.csv"), "--well-known text")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "MODEL: is required; give it on the command line or in the recipe"),
        (["--no_such_option", "1"], "--no_such_option: unknown option; see bert-snli finetune --help"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--learning_rate", "-1"], "--learning_rate -1.0: give a number above 0"),
        (["--train_batch_size", "0"], "--train_batch_size 0: give 1 or more"),
        (["--dropout", "1"], "--dropout 1.0: give a probability from 0 to below 1"),
        (["--optim", "adam"], "invalid choice: 'adam'"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml"),
        (["--model_name_or_path", "nowhere"], "nowhere: no such model folder"),
        (["--model_name_or_path", "tests/nowhere"], "tests/nowhere: no such folder"),
        (["--model_name_or_path", "README.md"], "README.md: is a file, not a model folder; give the folder"),
        (["--num_processes", "two"], "accelerate launch: argument --num_processes/--num-processes: invalid"),
        (["--max_length", "4"], "--max_length 4: not allowed; give a number from 5 to 40"),
        (["--dataset_name_or_path", "nowhere.zip"], "--dataset_name_or_path nowhere.zip: no such file or folder"),
        (["--resume_from_checkpoint", "nowhere"], "not a checkpoint; give"),
        (["--mixed_precision", "fp16"], "--mixed_precision fp16: needs a GPU"),
        (["--seed", "-1"], "--seed -1: give a number from 0"),
        (["--report_to", "trackio"], "--report_to trackio: is not installed"),
    ],
)
def test_mistake_in_finetune_is_one_line(
    options: list[str],
    message: str,
    pretrained: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    defaults = ["--model_name_or_path", pretrained, "--dataset_name_or_path", corpus, "--max_length", 32]
    command = ["finetune", *(defaults if options else []), "--output_dir", tmp_path / "run", *options]
    assert message in error_line(command, capsys)
    assert not (tmp_path / "run").exists()


def test_finetune_of_a_d2l_checkpoint_says_to_convert_it_first(
    d2l_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    command = ["finetune", "--model_name_or_path", d2l_checkpoint, "--output_dir", tmp_path / "run"]
    assert "a d2l checkpoint; convert it first" in error_line(command, capsys)


def test_mistake_in_a_recipe_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    recipe = tmp_path / "recipe.yaml"
    for content, message in {
        "learning_rat: 1": "unknown option 'learning_rat'; did you mean --learning_rate?",
        "fp16: true": "unknown option 'fp16'; use --mixed_precision fp16 or bf16",
        "model: m": "unknown option 'model'; use --model_name_or_path",
        "learning_rate: fast": "invalid float value: 'fast'",
        "[1, 2]": "has no options",
        "a: [": "not YAML",
    }.items():
        recipe.write_text(content)
        assert message in error_line(["finetune", "--config", recipe, "--output_dir", tmp_path / "run"], capsys)


def test_recipe_of_the_other_training_command_is_not_offered(tmp_path: Path, capsys: pytest.CaptureFixture):
    line = error_line(["finetune", "--config", "d2l_book_pretrain", "--output_dir", tmp_path / "run"], capsys)
    assert "give a YAML file or one of d2l_book, default, pooler, taught" in line
    line = error_line(["pretrain", "--config", "pooler", "--output_dir", tmp_path / "run"], capsys)
    assert "give a YAML file or one of d2l_book_pretrain" in line


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("report", ["evaluate", "report"]),
        ("premise", ["predict", "premise", "--input_file", "pairs.csv"]),
        ("config", ["finetune", "config", "--output_dir", "run"]),
    ],
)
def test_folder_with_the_name_of_an_option_is_not_written_as_an_option(
    name: str, argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / "pairs.csv").write_text("premise,hypothesis\nA dog runs.,A dog moves.\n")
    assert f"error: {name}: has no config.json" in error_line(argv, capsys)


def test_model_name_or_path_of_another_command_gets_advice(capsys: pytest.CaptureFixture):
    remedy = "--model_name_or_path: unknown option; give the model without an option name"
    assert remedy in error_line(["evaluate", "m", "--model_name_or_path", "m"], capsys)


def test_command_line_overrides_the_recipe(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 1.0e-3\nload_best_model_at_end: false\nmixed_precision: 'no'\nseed: 7\n")
    read = FINETUNE.parse(["--config", str(recipe), "--seed", "8", "--model_name_or_path", "m", "--output_dir", "o"])
    assert (read.learning_rate, read.load_best_model_at_end, read.mixed_precision, read.seed) == (1e-3, False, "no", 8)
    read.save_recipe(recipe)
    assert FINETUNE.parse(["--config", str(recipe)]) == read


@pytest.mark.parametrize("name", ["d2l_book", "default", "pooler", "taught"])
def test_recipe_holds_the_documented_settings(name: str):
    read = FINETUNE.parse(["--config", name, "--model_name_or_path", "m", "--output_dir", "o"])
    default = FINETUNE.parse(["--model_name_or_path", "m", "--output_dir", "o"])
    if name == "default":
        assert read == default
    elif name == "taught":
        assert read == replace(default, dropout=0.0, num_train_epochs=3)
    elif name == "pooler":
        assert read == replace(default, classifier_head="pooler", learning_rate=5e-4)
    else:
        assert (read.optim, read.learning_rate, read.train_batch_size, read.loss_reduction) == (
            "adam_torch",
            1e-4,
            512,
            "sum",
        )


def test_unknown_recipe_is_refused_with_the_names_of_the_recipes(capsys: pytest.CaptureFixture):
    line = error_line(["finetune", "--config", "d2l", "--output_dir", "run"], capsys)
    assert "--config d2l: No such file or directory; give a YAML file or one of d2l_book, default" in line


def test_config_prints_the_accelerate_configuration(capsys: pytest.CaptureFixture):
    assert main(["config"]) == 0
    printed = capsys.readouterr()
    assert printed.out == (REPOSITORY / "accelerate_config.yaml").read_text() and printed.err == ""


def test_output_folder_with_files_is_refused(
    pretrained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    command = ["finetune", "--model_name_or_path", pretrained, "--dataset_name_or_path", corpus]
    assert "--overwrite_output_dir" in error_line([*command, "--output_dir", tmp_path / "run"], capsys)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_unknown_label_is_refused_before_anything_is_written(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    data = tmp_path / "data"
    data.mkdir()
    row = {"gold_label": "maybe", "sentence1": "a", "sentence2": "b"}
    for split in ("train", "dev"):
        (data / f"snli_1.0_{split}.jsonl").write_text(json.dumps(row) + "\n")
    command = ["finetune", "--model_name_or_path", pretrained, "--dataset_name_or_path", data, "--max_length", 32]
    assert "has only the label maybe; give data with two or more labels" in error_line(
        [*command, "--output_dir", tmp_path / "run"], capsys
    )
    assert not (tmp_path / "run").exists()


def test_classifier_head_that_differs_from_that_of_the_model_is_refused(
    model_folder: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    command = ["finetune", "--model_name_or_path", model_folder, "--dataset_name_or_path", corpus]
    error = error_line([*command, "--classifier_head", "mlp", "--output_dir", tmp_path / "run"], capsys)
    assert "a classifier with the pooler head" in error


def test_options_of_accelerate_launch_are_separated_from_those_of_the_recipe():
    launch_options, recipe_options = split_arguments(
        "--num_processes 2 --seed 3 --mixed-precision bf16 --main_process_port=0 --cpu --config r.yaml".split(),
        FinetuneArguments,
    )
    assert launch_options == ["--num_processes", "2", "--main_process_port=0", "--cpu"]
    assert recipe_options == ["--seed", "3", "--mixed-precision", "bf16", "--config", "r.yaml"]


@pytest.mark.slow
def test_error_in_two_processes_exits_with_2(pretrained: Path, tmp_path: Path, run_python):
    command = [pretrained, "--output_dir", tmp_path / "run", "--max_length", 32]
    done = run_python(
        "-m",
        "bert_snli.cli",
        "finetune",
        "--num_processes",
        2,
        *command,
        "--dataset_name_or_path",
        tmp_path / "nowhere.zip",
    )
    assert done.returncode == 2
    assert "nowhere.zip: no such file or folder" in done.stderr
    assert not (tmp_path / "run").exists()


def predicted_scores(folder: Path, pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
    return Predictor(load_classifier(str(folder)), load_tokenizer(str(folder)))(pairs)


def test_predict_prints_the_probabilities_of_one_pair(model_folder: Path, capsys: pytest.CaptureFixture):
    command = ["predict", str(model_folder), "--premise", "a man runs", "--hypothesis", "a dog"]
    assert main(command) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    expected = predicted_scores(model_folder, [("a man runs", "a dog")])[0]
    assert {label: float(value) for label, value in lines} == pytest.approx(expected, abs=1e-4)
    assert [label for label, _ in lines] == sorted(expected, key=expected.get, reverse=True)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_predict_writes_a_prediction_for_each_row_of_a_file(suffix: str, model_folder: Path, tmp_path: Path):
    pairs = random_pairs(9)
    source = tmp_path / f"pairs{suffix}"
    if suffix == ".jsonl":
        source.write_text("".join(json.dumps({"premise": p, "hypothesis": h}) + "\n" for p, h in pairs))
    else:
        separator = "," if suffix == ".csv" else "\t"
        source.write_text("".join(f"{p}{separator}{h}\n" for p, h in [("premise", "hypothesis"), *pairs]))
    command = ["predict", model_folder, "--input_file", source, "--output_file", tmp_path / "out.jsonl"]
    assert main([str(word) for word in command]) == 0
    predictions = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(prediction["premise"], prediction["hypothesis"]) for prediction in predictions] == pairs
    for prediction, scores in zip(predictions, predicted_scores(model_folder, pairs), strict=True):
        assert prediction["label"] == max(scores, key=scores.get)
        assert prediction["scores"] == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--premise", "a"], "no pair: give either --premise and --hypothesis, or --input_file"),
        (["--input_file", "nowhere.csv"], "--input_file nowhere.csv"),
        (["--input_file", "pairs.xlsx"], "unknown file type '.xlsx'"),
        (
            ["--premise", "a", "--hypothesis", "b", "--max_length", "41"],
            "--max_length 41: not allowed; give a number from 5 to 40",
        ),
        (
            ["--premise", "a", "--input_file", "pairs.csv"],
            "a pair and a file: give either --premise and --hypothesis, or --input_file",
        ),
        (["--premise", "a", "--hypothesis", "b", "--output_file", "x"], "--output_file: needs --input_file"),
        (["--premise", "a", "--hypothesis", "b", "--batch_size", "0"], "0: give 1 or more"),
    ],
)
def test_mistake_in_predict_is_one_line(
    options: list[str],
    message: str,
    model_folder: Path,
    capsys: pytest.CaptureFixture,
):
    assert message in error_line(["predict", model_folder, *options], capsys)


def test_output_file_that_cannot_be_written_is_named(
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    source = tmp_path / "pairs.csv"
    source.write_text("\ufeffpremise,hypothesis\na man,a dog\n", encoding="utf-8")  # as Excel writes it
    command = ["predict", model_folder, "--input_file", source, "--output_file"]
    for target in (tmp_path, tmp_path / "nowhere" / "out.jsonl"):
        assert f"--output_file {target}: cannot be written" in error_line([*command, target], capsys)
    assert "unknown format; name it .jsonl, .json or .csv" in error_line([*command, tmp_path / "out.tsv"], capsys)
    assert main([str(word) for word in [*command, tmp_path / "out.jsonl"]]) == 0


def test_report_folder_that_is_a_file_is_refused(
    model_folder: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    (tmp_path / "report").write_text("mine")
    command = ["evaluate", model_folder, "--dataset_name_or_path", corpus, "--output_dir", tmp_path / "report"]
    assert "is a file; give a folder" in error_line(command, capsys)


def test_output_folder_below_a_file_is_refused(
    pretrained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "file").write_text("mine")
    command = ["finetune", "--model_name_or_path", pretrained, "--dataset_name_or_path", corpus, "--max_length", 32]
    assert "file: is a file; give a folder" in error_line([*command, "--output_dir", tmp_path / "file" / "run"], capsys)


def test_extra_is_named_when_one_of_its_packages_is_missing(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name.startswith("bert_snli.serving")]:
        monkeypatch.delitem(sys.modules, name)
    assert "gradio is not installed; pip install 'bert-snli[serve]'" in error_line(["serve", "m"], capsys)


@pytest.mark.parametrize("name", ["bert_snli.inferrence", "sklearn.no_such_module", "numpyy"])
def test_missing_module_that_is_no_extra_is_a_traceback(name: str):
    with pytest.raises(ModuleNotFoundError, match=name):
        run("bert-snli", lambda: importlib.import_module(name))


def test_table_of_extras_agrees_with_pyproject():
    project = pytest.importorskip("tomllib").loads(PYPROJECT.read_text())["project"]
    extras = {
        extra: {Requirement(line).name for line in lines}
        for extra, lines in project["optional-dependencies"].items()
        if extra in ("onnx", "serve")
    }
    for name, extra in EXTRA_OF_IMPORT.items():
        assert name in extras[extra]
    assert set(EXTRA_OF_IMPORT) == set().union(*extras.values())


GLOO_ERROR = "[../third_party/gloo/gloo/transport/tcp/pair.cc:525] Read error [127.0.0.1]:1: Connection reset by peer"


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (DistBackendError("NCCL communicator was aborted on rank 1. "), True),
        (
            DistBackendError(
                "NCCL error in: ProcessGroupNCCL.cpp:3356, remote process exited or there was a network error, NCCL "
                "version 2.27.5\nncclRemoteError: A call failed possibly due to a network error or a remote process "
                "exiting prematurely."
            ),
            True,
        ),
        (
            DistBackendError("ncclSystemError: System call (e.g. socket, malloc) or external library call failed"),
            True,
        ),
        (
            DistBackendError(
                "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=ALLREDUCE) ran for "
                "600081 milliseconds before timing out."
            ),
            True,
        ),
        (DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."), True),
        (DistStoreError("wait timeout after 300000ms, keys: /default_pg/0//cuda//timeline_0"), True),
        (RuntimeError(GLOO_ERROR), True),
        (DistBackendError("unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function failed."), False),
        (DistBackendError("ncclInvalidUsage: This usually reflects invalid usage of NCCL library."), False),
        (RuntimeError("NCCL is not built in"), False),
        (ValueError(GLOO_ERROR), False),
    ],
)
def test_lost_connection_is_recognised_by_class_and_by_text_of_gloo(error: Exception, is_lost: bool):
    assert is_lost_connection(error) is is_lost


def test_lost_connection_is_recognised_without_importing_torch(run_python):
    done = run_python(
        "-c",
        "import sys; from bert_snli.console import is_lost_connection; "
        "assert is_lost_connection(RuntimeError('Broken pipe')) and not is_lost_connection(RuntimeError('other')); "
        "assert 'torch' not in sys.modules",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"])
def test_process_of_a_launcher_trains_and_does_not_launch(variable: str, monkeypatch: pytest.MonkeyPatch, capsys):
    """On a machine with two GPUs, where `bert-snli finetune` would launch two processes."""
    trained: list[list[str]] = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(finetune, "main", lambda argv: trained.append(argv) or 0)
    monkeypatch.setattr(launch, "_launch", lambda *_: pytest.fail("launched again"))
    monkeypatch.setenv(variable, "1")
    command = ["finetune", "--model_name_or_path", "m", "--output_dir", "o"]
    assert main(command) == 0
    assert trained == [command[1:]]
    assert "give the option to the launcher" in error_line([*command, "--num_processes", "2"], capsys)


@pytest.mark.slow
def test_accelerate_launch_of_the_command_makes_one_run_of_two_processes(
    model_folder: Path, corpus: Path, tmp_path: Path, run_python
):
    where = ["--model_name_or_path", model_folder, "--dataset_name_or_path", corpus, "--output_dir", tmp_path / "run"]
    done = run_python(*LAUNCH, "finetune", *where, "--max_length", 32, "--max_steps", 2, "--max_eval_samples", 20)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    results = json.loads((tmp_path / "run" / "train_results.json").read_text())
    assert (results["num_processes"], results["train_steps"]) == (2, 2)
    assert sum("train loss" in line and "examples/s" in line for line in done.stdout.splitlines()) == 1


def test_multi_gpu_is_refused_without_a_gpu(pretrained: Path, tmp_path: Path, capsys):
    command = ["finetune", "--model_name_or_path", pretrained, "--output_dir", tmp_path / "run", "--multi_gpu"]
    assert "--multi_gpu: this machine has no GPU; add --num_processes N" in error_line(command, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("num_updates", "accuracy", "is_warned"), [(100, 0.5, True), (200, 0.3, True), (100, 0.51, False), (99, 0.3, False)]
)
def test_finetune_warns_when_the_model_is_no_better_than_the_most_frequent_label(
    num_updates: int, accuracy: float, is_warned: bool, caplog: pytest.LogCaptureFixture
):
    metrics = {"train_steps": num_updates, "eval_accuracy": accuracy, "eval_split": "validation"}
    finetune.warn_if_nothing_learned(TrainingResult(Path("run"), metrics), [0, 0, 1, 2])
    message = f"validation accuracy is {accuracy:.3f}, and the share of the most frequent label is 0.500"
    assert (message in caplog.text) == is_warned and bool(caplog.records) == is_warned


@pytest.mark.parametrize("content", ["premise,hypothesis\na\n", "p,h\na,b\n", "premise,hypothesis\n", "\xff"])
def test_damaged_input_file_is_named(content: str, model_folder: Path, tmp_path: Path, capsys):
    source = tmp_path / "pairs.csv"
    source.write_bytes(content.encode("latin-1"))
    assert str(source) in error_line(["predict", model_folder, "--input_file", source], capsys)


def test_input_file_error_names_the_row(model_folder: Path, tmp_path: Path, capsys):
    source = tmp_path / "pairs.jsonl"
    source.write_text('{"premise": "a", "hypothesis": "b"}\n' * 10 + '{"premise": "a\n')
    line = error_line(["predict", model_folder, "--input_file", source], capsys)
    assert f"{source}: line 11 is not JSON (Invalid control character at); correct or remove the line" in line


def test_pretrained_model_is_refused_by_evaluate_and_predict(
    pretrained: Path, corpus: Path, capsys: pytest.CaptureFixture
):
    for command in (
        ["evaluate", pretrained, "--dataset_name_or_path", corpus],
        ["predict", pretrained, "--premise", "a"],
    ):
        rest = ["--hypothesis", "b"] if command[0] == "predict" else []
        assert "without a trained classifier" in error_line([*command, *rest], capsys)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"model_type": "bert"}', "a model of type 'bert', not 'd2l_bert'"),
        ("config.json", "{", "its config.json cannot be loaded (OSError: It looks like the config file"),
        (
            "config.json",
            '{"model_type": "d2l_bert", "hidden_size": "wide"}',
            "its config.json cannot be loaded (TypeError",
        ),
        ("tokenizer.json", "{", "its tokenizer.json cannot be loaded (JSONDecodeError: "),
        ("tokenizer.json", "{}", "its tokenizer.json cannot be loaded (KeyError: "),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("config.json", None, "has no config.json"),
        ("model.safetensors", None, "its weights cannot be loaded"),
        ("model.safetensors", "no weights", "its weights cannot be loaded"),
    ],
)
def test_damaged_file_of_a_model_is_named(
    name: str,
    content: str | None,
    message: str,
    model_folder: Path,
    capsys: pytest.CaptureFixture,
):
    if content is None:
        (model_folder / name).unlink()
    else:
        (model_folder / name).write_text(content)
    assert message in error_line(["predict", model_folder, "--premise", "a", "--hypothesis", "b"], capsys)


def test_quickstart_converts_trains_evaluates_and_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    pairs = {"train": 300, "dev": 60, "test": 60}
    monkeypatch.setattr("bert_snli.data.sample.write_sample", partial(write_sample, num_pairs=pairs))
    monkeypatch.setattr("bert_snli.cli.quickstart.TRAINING_OPTIONS", {"num_train_epochs": 1})
    assert main(["quickstart", "--output_dir", str(tmp_path / "q")]) == 0
    printed = capsys.readouterr().out
    for path in ("mini_snli/snli_1.0_train.jsonl", "d2l_checkpoint/pretrained.params", "converted/model.safetensors"):
        assert (tmp_path / "q" / path).is_file()
    results = json.loads((tmp_path / "q" / "finetuned" / "eval_results_test.json").read_text())
    assert f"accuracy {results['accuracy']:.4f}" in printed and "bert-snli finetune models/small" in printed
    assert len(re.findall(r"^  .* (?:entailment|contradiction|neutral) +[01]\.\d{3}$", printed, re.MULTILINE)) == 3
    assert main(["quickstart", "--output_dir", str(tmp_path / "q")]) == 2


LEAVE_PROCESS_GROUP = """
import sys, torch
from bert_snli.console import run_and_leave
from bert_snli.errors import BertSnliError

torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)

def command():
    torch.distributed.all_reduce(torch.ones(3))
    if sys.argv[2] == "2":
        raise BertSnliError("anything")

code = run_and_leave("bert-snli", command)
assert not torch.distributed.is_initialized()
sys.exit(code)
"""


@pytest.mark.parametrize("code", [0, 2])
def test_command_leaves_the_process_group(code: int, tmp_path: Path, run_python):
    """If gloo's threads still run when a process exits, they sometimes end it with SIGABRT, even after success."""
    done = run_python("-c", LEAVE_PROCESS_GROUP, tmp_path / "store", code)
    assert done.returncode == code, done.stderr
    assert done.stderr == ("bert-snli: error: anything\n" if code else "")
