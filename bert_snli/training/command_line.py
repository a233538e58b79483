"""The command lines of `finetune` and `pretrain`: their options, and those of `accelerate launch` among them.

This module imports neither PyTorch nor transformers, so that help and mistaken options are answered at once.
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from bert_snli.console import OneLineErrorParser
from bert_snli.recipes import RECIPES, find_recipe
from bert_snli.training.arguments import BaseTrainingArguments, FinetuneArguments, recipe_arguments
from bert_snli.training.pretrain_arguments import PretrainArguments

# Options of `accelerate launch` that `bert-snli finetune` and `pretrain` pass on, and whether each has a value.
LAUNCH_OPTIONS = {
    "--config_file": True,
    "--cpu": False,
    "--debug": False,
    "--gpu_ids": True,
    "--log_dir": True,
    "--machine_rank": True,
    "--main_process_ip": True,
    "--main_process_port": True,
    "--max_restarts": True,
    "--monitor_interval": True,
    "--multi_gpu": False,
    "--num_cpu_threads_per_process": True,
    "--num_machines": True,
    "--num_processes": True,
    "--quiet": False,
    "--rdzv_backend": True,
    "--rdzv_conf": True,
    "--role": True,
    "--same_network": False,
    "--tee": True,
}
FINETUNE_DESCRIPTION = """\
Fine-tune a model on SNLI and keep it as a normal model folder, with metrics.jsonl and the book's curve beside it.
Without --config it follows the recipe `default`, whose values are the defaults below.

examples:
  bert-snli finetune --model_name_or_path models/small --output_dir runs/snli
  bert-snli finetune --config d2l_book --model_name_or_path models/small --output_dir runs/d2l
  bert-snli finetune ... --num_processes 2          options of `accelerate launch` are taken as well
  accelerate launch --config_file accelerate_config.yaml -m bert_snli.finetune ...      the same, launched by hand
"""
PRETRAIN_DESCRIPTION = """\
Pretrain a model on plain text, to predict hidden words (MLM) and whether a sentence is the next one (NSP), and keep it
as a normal model folder, to be fine-tuned, asked by pipeline("fill-mask"), or exported to the book's own format.

examples:
  bert-snli pretrain --dataset_name_or_path path/to/wikitext-2 --output_dir runs/wiki
  bert-snli pretrain --dataset_name_or_path snli_1.0.zip --model_name_or_path runs/wiki --output_dir runs/captions
  bert-snli pretrain --config d2l_book_pretrain --output_dir runs/d2l       WikiText-2 from the hub
  bert-snli pretrain ... --num_processes 2          options of `accelerate launch` are taken as well
"""

Recipe = TypeVar("Recipe", bound=BaseTrainingArguments)


@dataclass(frozen=True)
class TrainingCommand(Generic[Recipe]):
    """A command whose options are the fields of a dataclass."""

    prog: str
    recipe_class: type[Recipe]
    description: str

    def parse(self, argv: Sequence[str]) -> Recipe:
        """Read options. Those of `--config FILE.yaml` come first, so that the command line overrides them.

        Raises:
            BertSnliError: a value that makes no sense. An unknown option exits with 2.
        """
        parser = OneLineErrorParser(prog=self.prog, description=self.description)
        add_fields(parser, self.recipe_class)
        parser.add_argument(
            "--config",
            help=f"Recipe: a YAML file with any of these options, which the command line overrides, or the name of one "
            f"of bert-snli's own: {', '.join(RECIPES)}.",
        )
        config = parser.parse_known_args(argv)[0].config
        from_file = recipe_arguments(find_recipe(config), self.recipe_class, self.prog) if config else []
        options = vars(parser.parse_args([*from_file, *argv]))
        del options["config"]
        return self.recipe_class(**options)


FINETUNE = TrainingCommand("bert-snli finetune", FinetuneArguments, FINETUNE_DESCRIPTION)
PRETRAIN = TrainingCommand("bert-snli pretrain", PretrainArguments, PRETRAIN_DESCRIPTION)
COMMANDS: dict[str, TrainingCommand[Any]] = {"finetune": FINETUNE, "pretrain": PRETRAIN}


def option_names(recipe_class: type[BaseTrainingArguments]) -> set[str]:
    """Return the names of a training command's options: the fields, `config`, and the launcher's options."""
    return {field.name for field in fields(recipe_class)} | {"config"} | {name[2:] for name in LAUNCH_OPTIONS}


def add_fields(parser: argparse.ArgumentParser, recipe_class: type[BaseTrainingArguments]) -> None:
    """Add an option for each field of a dataclass; a switch that is on by default also gets `--no_NAME`."""
    hints = get_type_hints(recipe_class)
    for field in fields(recipe_class):
        kind = _without_none(hints[field.name])
        options: dict[str, Any] = {"default": field.default, "help": field.metadata["help"]}
        if field.name in recipe_class.required:
            options["help"] += " Required."
        if kind is bool:
            options |= {"type": boolean, "nargs": "?", "const": True, "metavar": "true|false"}
        else:
            options |= {"type": kind, "choices": field.metadata.get("choices")}
        parser.add_argument(*_spellings(field.name), **options)
        if kind is bool and field.default is True:
            negated = _spellings(f"no_{field.name}")
            parser.add_argument(
                *negated,
                dest=field.name,
                action="store_false",
                default=argparse.SUPPRESS,
                help=f"Switch --{field.name} off.",
            )


def _without_none(hint: Any) -> Any:
    """`int` of `int | None`."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return hint


def _spellings(name: str) -> list[str]:
    """With underscores, and with dashes where that is another spelling."""
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


def boolean(text: str) -> bool:
    """For `type=`: true or false."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text}: give true or false")
    return known[text.lower()]


def split_arguments(argv: Sequence[str], recipe_class: type[BaseTrainingArguments]) -> tuple[list[str], list[str]]:
    """Separate the options of `accelerate launch` from those of the recipe; one that both know is the recipe's."""
    recipe_options = {f"--{field.name}" for field in fields(recipe_class)}
    launch: list[str] = []
    recipe: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name = word.partition("=")[0].replace("-", "_").replace("__", "--", 1)
        if name not in LAUNCH_OPTIONS or name in recipe_options:
            recipe.append(word)
            continue
        launch.append(word)
        if LAUNCH_OPTIONS[name] and "=" not in word and rest:
            launch.append(rest.pop(0))
    return launch, recipe
