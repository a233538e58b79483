"""Parse the command lines of `finetune` and `pretrain`, which also accept options of `accelerate launch`.

This module imports neither PyTorch nor transformers, so that `--help` and errors about options appear at once.
"""

import argparse
from collections.abc import Sequence
from dataclasses import Field, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import yaml

from bert_snli.console import OneLineErrorParser, add_dashes, add_token, assignment
from bert_snli.errors import BertSnliError, one_line
from bert_snli.recipes import RECIPES
from bert_snli.training.arguments import GROUPS, BaseTrainingArguments, FinetuneArguments, PretrainArguments

# Options with a value, and switches, that `bert-snli finetune` and `pretrain` pass on to `accelerate launch`.
LAUNCH_OPTIONS = """
    config_file gpu_ids log_dir machine_rank main_process_ip main_process_port max_restarts monitor_interval
    num_cpu_threads_per_process num_machines num_processes rdzv_backend rdzv_conf role tee
""".split()
LAUNCH_SWITCHES = "cpu debug multi_gpu quiet same_network".split()
# Advice for options of `transformers.TrainingArguments` and of its examples that these commands do not have.
_REMEDIES = {
    "per_device_train_batch_size per_gpu_train_batch_size batch_size": "use --train_batch_size, a global batch size",
    "gradient_accumulation_steps": "use --num_micro_batches, which splits --train_batch_size and does not multiply it",
    "eval_strategy evaluation_strategy eval_steps do_eval": "remove it; a run evaluates after each epoch",
    "do_train": "remove it; the command always trains",
    "fp16 bf16": "use --mixed_precision fp16 or bf16",
    "logging_dir": "use --report_to tensorboard, which writes into --output_dir",
    "save_strategy": "use --save_steps N to write a checkpoint every N updates",
    "warmup_ratio": "use --warmup_steps; a value below 1 is a fraction of all updates",
    "group_by_length": "use --train_sampling_strategy group_by_length",
    "max_seq_length": "use --max_length",
    "model": "use --model_name_or_path",
    "dataset_name": "use --dataset_name_or_path",
    "tokenizer_name": "remove it; the tokenizer is in the model folder",
    "use_cpu no_cuda": "use --cpu",
    " ".join((*LAUNCH_OPTIONS, *LAUNCH_SWITCHES)): "give it to `accelerate launch`, or start with bert-snli",
}
REMEDIES = {name: remedy for names, remedy in _REMEDIES.items() for name in names.split()}
FINETUNE_DESCRIPTION = """\
Fine-tune a model on SNLI or on your own sentence pairs. The output folder is a model folder with metrics.jsonl and a
training curve as in d2l.

examples:
  bert-snli finetune models/small --output_dir runs/snli
  bert-snli finetune models/small --config d2l_book --output_dir runs/d2l
  bert-snli finetune models/small --output_dir runs/mine \\
      --dataset_name_or_path my.csv --labels 0=wrong 1=right \\
      --columns premise=question hypothesis=answer
  bert-snli finetune models/small --output_dir runs/snli --num_processes 2
  accelerate launch -m bert_snli.finetune models/small --output_dir runs/snli
"""
PRETRAIN_DESCRIPTION = """\
Pretrain a model on plain text with masked language modelling (MLM) and next sentence prediction (NSP). The output
folder is a model folder for bert-snli finetune, bert-snli export and pipeline("fill-mask").

examples:
  bert-snli pretrain --dataset_name_or_path wikitext-2 --output_dir runs/wiki
  bert-snli pretrain --model_name_or_path runs/wiki \\
      --dataset_name_or_path snli_1.0.zip --output_dir runs/captions
  bert-snli pretrain --config d2l_book_pretrain --output_dir runs/d2l
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
        """Return the names of all options, including those of the launcher."""
        return {field.name for field in fields(self.arguments_class)} | {"config"} | set(LAUNCH_OPTIONS)

    @property
    def recipes(self) -> dict[str, Path]:
        """Return the installed recipes for this command, by name."""
        is_pretraining = self.arguments_class is PretrainArguments
        return {name: path for name, path in RECIPES.items() if name.endswith("_pretrain") == is_pretraining}

    def build_parser(self) -> OneLineErrorParser:
        """Build the parser. `GROUPS` defines the order of the options in the help."""
        required = self.arguments_class.required
        usage = "%(prog)s MODEL " if "model_name_or_path" in required else "%(prog)s "
        parser = OneLineErrorParser(
            prog=self.prog, usage=f"{usage}--output_dir DIR [options]", description=self.description
        )
        parser.remedies, parser.other_options = REMEDIES, sorted([*LAUNCH_OPTIONS, *LAUNCH_SWITCHES])
        recipe_help = f"Recipe: {', '.join(self.recipes)}, or a YAML file. Options on the command line override it."
        parser.add_argument("--config", metavar="NAME|FILE", help=recipe_help)
        hints = get_type_hints(self.arguments_class)
        options = {field.name: field for field in fields(self.arguments_class)}
        for title, names in GROUPS.items():
            group = parser.add_argument_group(title)
            for name in names.split():
                if name in options:
                    text = add_dashes(options[name].metadata["help"], options)
                    kinds = get_args(hints[name]) if type(None) in get_args(hints[name]) else [hints[name]]
                    (kind,) = {*kinds} - {type(None)}  # `int` for `int | None`
                    add_option(group, options[name], kind, text, name in required)
            if title == "Hub":
                add_token(group)
        accepted = ", ".join(f"--{name}" for name in parser.other_options)
        parser.add_argument_group("Several processes", f"Options of `accelerate launch` that are accepted: {accepted}")
        return parser

    def parse(self, argv: Sequence[str]) -> Arguments:
        """Parse the options. Options on the command line override the recipe that `--config` names."""
        parser = self.build_parser()
        given, unknown = parser.parse_known_args(argv)
        if unknown:
            parser.refuse(unknown)
        from_recipe = self.read_recipe(given.config, parser) if given.config else []
        options = vars(parser.parse_args(argv, parser.parse_args(from_recipe)))
        del options["config"]
        del options["token"]
        if model := options.pop("model", None):
            if given.model_name_or_path:
                parser.error("argument MODEL: not allowed with argument --model_name_or_path")
            options["model_name_or_path"] = model
        for name in self.arguments_class.required:
            if not options[name]:
                what = "MODEL" if name == "model_name_or_path" else name
                raise BertSnliError(f"{what}: is required; give it on the command line or in the recipe")
        assignments = {name: dict(value) for name, value in options.items() if isinstance(value, list)}
        return self.arguments_class(**options | assignments)

    def read_recipe(self, config: str, parser: OneLineErrorParser) -> list[str]:
        """Read a YAML recipe. Return its options as command-line arguments, so that one parser checks both."""
        try:
            content = yaml.safe_load(self.recipes.get(config, Path(config)).read_text(encoding="utf-8"))
        except OSError as error:
            names = ", ".join(self.recipes)
            raise BertSnliError(f"config {config}: {error.strerror}; give a YAML file or one of {names}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise BertSnliError(f"config {config}: not YAML ({one_line(error)}); give a YAML recipe") from error
        if not isinstance(content, dict):
            raise BertSnliError(f"config {config}: has no options; write lines such as 'learning_rate: 1e-4'")
        unknown = [key for key in content if key not in {field.name for field in fields(self.arguments_class)}]
        if unknown:
            raise BertSnliError(f"config {config}: unknown option {unknown[0]!r}; {parser.remedy(str(unknown[0]))}")
        words: list[str] = []
        for name, value in content.items():
            values = [str(value)]
            if isinstance(value, dict):
                if wrong := [entry for entry in value.values() if not isinstance(entry, str)]:
                    raise BertSnliError(f"config {config}: {name}: {wrong[0]} is not a text; write it in quotes")
                values = [f"{key}={entry}" for key, entry in value.items()]
            words += [f"--{name}", *values] if value is not None else []
        return words


FINETUNE = TrainingCommand("bert-snli finetune", FinetuneArguments, FINETUNE_DESCRIPTION)
PRETRAIN = TrainingCommand("bert-snli pretrain", PretrainArguments, PRETRAIN_DESCRIPTION)
COMMANDS: dict[str, TrainingCommand[Any]] = {"finetune": FINETUNE, "pretrain": PRETRAIN}


def add_option(group: Any, field: Field, kind: type, text: str, is_required: bool) -> None:
    """Add the option of a dataclass field. A model that is required may also be a positional argument."""
    if is_required and field.name == "model_name_or_path":
        text += " Also: --model_name_or_path MODEL. (required)"
        group.add_argument("model", metavar="MODEL", nargs="?", help=text)
        text = argparse.SUPPRESS
    elif is_required:
        text += " (required)"
    options: dict[str, Any] = {"type": kind, "choices": field.metadata["choices"], "metavar": field.metadata["metavar"]}
    if kind is bool:
        options = {"type": boolean, "nargs": "?", "const": True, "metavar": "true|false"}
    elif get_origin(kind) is dict:
        options |= {"type": assignment, "nargs": "+", "action": "extend"}
    group.add_argument(f"--{field.name}", default=field.default, help=text, **options)


def boolean(text: str) -> bool:
    """Parse true or false, for `type=`."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text}: give true or false, or give MODEL before the options")
    return values[text.lower()]


def split_arguments(argv: Sequence[str], arguments_class: type[BaseTrainingArguments]) -> tuple[list[str], list[str]]:
    """Separate the options of `accelerate launch` from those of training. An option of both belongs to training."""
    training_options = {field.name for field in fields(arguments_class)}
    launch: list[str] = []
    training: list[str] = []
    words = iter(argv)
    for word in words:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        is_launch = word.startswith("--") and name in (*LAUNCH_OPTIONS, *LAUNCH_SWITCHES)
        if is_launch and name not in training_options:
            launch += [word, *islice(words, int(name in LAUNCH_OPTIONS and "=" not in word))]
        else:
            training.append(word)
    return launch, training
