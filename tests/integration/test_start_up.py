"""Help and errors in options are printed before the large libraries are imported."""

from __future__ import annotations

import subprocess

import pytest

from bert_snli import choices
from bert_snli.cli import COMMANDS, TRAINING

LARGE_LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "sklearn", "scipy", "matplotlib")
SCRIPT = """
import sys
from bert_snli.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stopped:
    code = stopped.code
print("imported:", *[name for name in {libraries} if name in sys.modules])
sys.exit(code)
""".replace("{libraries}", repr(LARGE_LIBRARIES))


def run_command(run_python, *arguments: object) -> tuple[subprocess.CompletedProcess, set[str]]:
    """Run a command in a new process. Return what it printed and the large libraries that it imported."""
    done = run_python("-c", SCRIPT, *arguments)
    title, *imported = done.stdout.splitlines()[-1].split()
    assert title == "imported:", done.stdout
    return done, set(imported)


def run_light_command(run_python, *arguments: str) -> subprocess.CompletedProcess:
    done, imported = run_command(run_python, *arguments)
    assert imported == set()
    return done


@pytest.mark.parametrize("command", [*COMMANDS, *TRAINING])
def test_help_and_unknown_option_import_no_large_library(command: str, run_python):
    assert run_light_command(run_python, command, "--help").returncode == 0
    done = run_light_command(run_python, command, "--no_such_option", "1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rate", "fast"], "argument --learning_rate: invalid float value: 'fast'"),
        (["--fast_forward", "m"], "--fast_forward: m: give true or false, or give MODEL before the options"),
        (["--optim", "sgd"], "argument --optim: invalid choice: 'sgd'"),
        (["--learning_rat", "1"], "--learning_rat: unknown option; did you mean --learning_rate?"),
        (["--learning_rate", "-1"], "--learning_rate -1.0: give a number above 0"),
        (["--config", "no_such_recipe.yaml"], "--config no_such_recipe.yaml: No such file or directory"),
        (["--num_processes", "2", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
    ],
)
def test_wrong_value_of_a_training_option_imports_no_large_library(arguments: list[str], message: str, run_python):
    done = run_light_command(run_python, "finetune", "m", "--output_dir", "o", *arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predict m --premise a", "no pair: give either --premise and --hypothesis, or --input_file"),
        ("predict m --input_file pairs.csv --output_file p.tsv", "--output_file p.tsv: unknown format"),
        ("evaluate m --compare other", "--compare other: needs a report; add --report DIR"),
        ("push m --repo_id user/name --dry_run", "--dry_run and --output_dir: one needs the other"),
        ("export m --format d2l-torch --output_dir o --quantize int8", "--quantize int8: only for --format onnx"),
    ],
)
def test_options_that_do_not_go_together_import_no_large_library(command: str, message: str, run_python):
    done = run_light_command(run_python, *command.split())
    assert done.returncode == 2 and message in done.stderr


def test_package_imports_no_large_library(run_python):
    done = run_python(
        "-c", f"import sys, bert_snli; print([name for name in {LARGE_LIBRARIES} if name in sys.modules])"
    )
    assert done.stdout == "[]\n"


def test_prediction_of_one_pair_does_not_import_datasets(run_python, model_folder):
    predict = ["predict", model_folder, "--premise", "a man runs", "--hypothesis", "a man eats"]
    done, imported = run_command(run_python, *predict)
    assert done.returncode == 0 and "datasets" not in imported


@pytest.mark.slow
def test_command_that_loads_large_libraries_says_so_first(run_python, tmp_path):
    done = run_python(
        "-m", "bert_snli.cli", "finetune", "--model_name_or_path", tmp_path, "--output_dir", tmp_path / "o"
    )
    assert done.returncode == 2 and done.stderr.startswith("bert-snli: loading ...\n")


def test_choices_equal_the_implemented_ones():
    from bert_snli.modeling.configuration_d2l_bert import CLASSIFIER_HEADS
    from bert_snli.modeling.pair_truncation import TRUNCATIONS
    from bert_snli.training.setup import OPTIMIZERS

    assert choices.CLASSIFIER_HEADS == CLASSIFIER_HEADS
    assert tuple(TRUNCATIONS) == choices.TRUNCATIONS
    assert tuple(OPTIMIZERS) == choices.OPTIMIZERS


def test_launch_options_equal_those_of_accelerate():
    from accelerate.commands.launch import launch_command_parser

    from bert_snli.training.command_line import LAUNCH_OPTIONS, LAUNCH_SWITCHES

    known = {option: action for action in launch_command_parser()._actions for option in action.option_strings}
    assert [name for name in LAUNCH_OPTIONS if known[f"--{name}"].nargs is not None] == []
    assert [name for name in LAUNCH_SWITCHES if known[f"--{name}"].nargs != 0] == []
