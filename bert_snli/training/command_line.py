"""The command lines of `finetune` and `pretrain`: their options, and the options of `accelerate launch` among them.

This module imports neither PyTorch nor transformers, so that help and errors in options appear at once.
"""

import argparse
import types
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from bert_snli.console import OneLineErrorParser
from bert_snli.errors import BertSnliError, one_line
from bert_snli.recipes import RECIPES
from bert_snli.training.arguments import BaseTrainingArguments, FinetuneArguments, PretrainArguments

# Options of `accelerate launch` that `bert-snli finetune` and `pretrain` pass on: those with a value, and switches.
LAUNCH_OPTIONS = """
    config_file gpu_ids log_dir machine_rank main_process_ip main_process_port max_restarts monitor_interval
    num_cpu_threads_per_process num_machines num_processes rdzv_backend rdzv_conf role tee
""".split()
LAUNCH_SWITCHES = "cpu debug multi_gpu quiet same_network".split()
FINETUNE_DESCRIPTION = """\
Fine-tune a model on SNLI. The output folder is a model folder with metrics.jsonl and the training curve of d2l.
The default values below are those of the recipe `default`.

examples:
  bert-snli finetune --model_name_or_path models/small --output_dir runs/snli
  bert-snli finetune --config d2l_book --model_name_or_path models/small --output_dir runs/d2l
  bert-snli finetune ... --num_processes 2          options of `accelerate launch` are accepted
  accelerate launch --config_file accelerate_config.yaml -m bert_snli.finetune ...      the same
"""
PRETRAIN_DESCRIPTION = """\
Pretrain a model on plain text with masked language modelling (MLM) and next sentence prediction (NSP). The output
folder is a model folder for `bert-snli finetune`, pipeline("fill-mask") or `bert-snli export`.

examples:
  bert-snli pretrain --dataset_name_or_path path/to/wikitext-2 --output_dir runs/wiki
  bert-snli pretrain --dataset_name_or_path snli_1.0.zip --model_name_or_path runs/wiki --output_dir runs/captions
  bert-snli pretrain --config d2l_book_pretrain --output_dir runs/d2l       WikiText-2 from the Hub
  bert-snli pretrain ... --num_processes 2          options of `accelerate launch` are accepted
"""

Arguments = TypeVar("Arguments", bound=BaseTrainingArguments)


@dataclass(frozen=True)
class TrainingCommand(Generic[Arguments]):
    """A command whose options are the fields of a dataclass."""

    prog: str
    arguments_class: type[Arguments]
    description: str

    @property
    def option_names(self) -> set[str]:
        """The names of all options, including those of the launcher."""
        return (
            {field.name for field in fields(self.arguments_class)} | {"config"} | {name[2:] for name in LAUNCH_OPTIONS}
        )

    @property
    def recipes(self) -> dict[str, Path]:
        """The recipes that are installed for this command, by name."""
        is_pretraining = self.arguments_class is PretrainArguments
        return {name: path for name, path in RECIPES.items() if name.endswith("_pretrain") == is_pretraining}

    def parse(self, argv: Sequence[str]) -> Arguments:
        """Read options. Those of the recipe that `--config` names come first, so the command line overrides them."""
        parser = OneLineErrorParser(prog=self.prog, description=self.description)
        add_fields(parser, self.arguments_class)
        recipes = ", ".join(self.recipes)
        recipe_help = f"Recipe with options: a YAML file, or one of {recipes}. The command line overrides it."
        parser.add_argument("--config", help=recipe_help)
        config = parser.parse_known_args(argv)[0].config
        from_recipe = read_recipe(self.recipes.get(config, Path(config)), self) if config else []
        options = vars(parser.parse_args([*from_recipe, *argv]))
        del options["config"]
        for name in self.arguments_class.required:
            if not options[name]:
                raise BertSnliError(f"{name}: is required; give it on the command line or in the recipe")
        return self.arguments_class(**options)


FINETUNE = TrainingCommand("bert-snli finetune", FinetuneArguments, FINETUNE_DESCRIPTION)
PRETRAIN = TrainingCommand("bert-snli pretrain", PretrainArguments, PRETRAIN_DESCRIPTION)
COMMANDS: dict[str, TrainingCommand[Any]] = {"finetune": FINETUNE, "pretrain": PRETRAIN}


def read_recipe(path: Path, command: TrainingCommand) -> list[str]:
    """Read a YAML recipe. Return its options as command-line arguments, so that one parser checks both."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(command.recipes)
        raise BertSnliError(f"config {path}: {error.strerror}; give a YAML file or one of {names}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BertSnliError(f"config {path}: not YAML ({one_line(error)}); give a YAML recipe") from error
    if not isinstance(content, dict):
        raise BertSnliError(f"config {path}: has no options; write lines such as 'learning_rate: 1e-4'")
    unknown = [key for key in content if key not in {entry.name for entry in fields(command.arguments_class)}]
    if unknown:
        raise BertSnliError(f"config {path}: unknown option {unknown[0]!r}; see the help of the command")
    return [word for key, value in content.items() if value is not None for word in (f"--{key}", str(value))]


def add_fields(parser: argparse.ArgumentParser, arguments_class: type[BaseTrainingArguments]) -> None:
    """Add an option for each field of a dataclass. A switch that is on by default also gets `--no_NAME`."""
    hints = get_type_hints(arguments_class)
    for field in fields(arguments_class):
        kind = _without_none(hints[field.name])
        options: dict[str, Any] = {"default": field.default, "help": field.metadata["help"]}
        if field.name in arguments_class.required:
            options["help"] += " Required."
        if kind is bool:
            options |= {"type": boolean, "nargs": "?", "const": True, "metavar": "true|false"}
        else:
            options |= {"type": kind, "choices": field.metadata["choices"]}
        parser.add_argument(*_spellings(field.name), **options)
        if kind is bool and field.default is True:
            off: dict[str, Any] = {
                "action": "store_false",
                "default": argparse.SUPPRESS,
                "help": f"Switch --{field.name} off.",
            }
            parser.add_argument(*_spellings(f"no_{field.name}"), dest=field.name, **off)


def _without_none(hint: Any) -> Any:
    """Return `int` for `int | None`."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return hint


def _spellings(name: str) -> list[str]:
    """Return the option with underscores, and with dashes if that is another spelling."""
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


def boolean(text: str) -> bool:
    """Parse true or false, for `type=`."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text}: give true or false")
    return values[text.lower()]


def split_arguments(argv: Sequence[str], arguments_class: type[BaseTrainingArguments]) -> tuple[list[str], list[str]]:
    """Separate the options of `accelerate launch` from those of training. An option of both is one of training."""
    training_options = {field.name for field in fields(arguments_class)}
    launch: list[str] = []
    training: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        is_launch = word.startswith("--") and name in (*LAUNCH_OPTIONS, *LAUNCH_SWITCHES)
        if not is_launch or name in training_options:
            training.append(word)
            continue
        launch.append(word)
        if name in LAUNCH_OPTIONS and "=" not in word and rest:
            launch.append(rest.pop(0))
    return launch, training
