"""The `bert-snli` command: the table of its commands, and the parser."""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bert_snli.cli import convert, evaluate, export, predict, push, quickstart, serve, verify
from bert_snli.console import OneLineErrorParser, configure_logging, run, run_and_leave, say_loading
from bert_snli.training.command_line import COMMANDS as TRAINING_COMMANDS
from bert_snli.training.command_line import split_arguments

PROG = "bert-snli"
DESCRIPTION = """\
The BERTs of Dive into Deep Learning (d2l.ai, section 15.7) in the Hugging Face ecosystem.

  bert-snli quickstart                   all of it on generated data, in two minutes
  bert-snli convert SOURCE ...           a checkpoint of the book's -> a model folder
  bert-snli pretrain ...                 make such a checkpoint from plain text
  bert-snli finetune ...                 train it on SNLI
  bert-snli evaluate MODEL ...           evaluate it
  bert-snli predict MODEL ...            label pairs of sentences
  bert-snli serve MODEL                  show it in the browser
  bert-snli push MODEL ...               put it on the Hugging Face hub
  bert-snli verify MODEL ...             check a conversion again
  bert-snli export MODEL ...             to ONNX, or back to the book's files

Each has its own --help.
"""


class Command(NamedTuple):
    """What the parser needs to know of a command."""

    summary: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def _of(module) -> Command:
    return Command(module.SUMMARY, module.HELP, module.add_arguments, module.run)


TRAINING = {"pretrain": "masked language model and next sentence", "finetune": "train on SNLI"}
COMMANDS = {
    "quickstart": _of(quickstart),
    "convert": _of(convert),
    "export": _of(export),
    "verify": _of(verify),
    "evaluate": _of(evaluate),
    "predict": _of(predict),
    "serve": _of(serve),
    "push": _of(push),
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands but those that train, whose options are the fields of their recipes."""
    parser = OneLineErrorParser(prog=PROG, description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=importlib.metadata.version("bert-snli"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in TRAINING.items():
        commands.add_parser(name, help=summary, add_help=False).set_defaults(parser=parser)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.summary, description=command.help)
        own.set_defaults(parser=own)
        command.add_arguments(own)
    return parser


def run_training(name: str, argv: list[str]) -> int:
    """`bert-snli finetune`, `bert-snli pretrain`."""
    codes: list[int] = []

    def train() -> None:
        command = TRAINING_COMMANDS[name]
        command.parse(split_arguments(argv, command.arguments_class)[1])  # answers --help and mistakes at once
        say_loading()
        from bert_snli import launch

        codes.append(launch.main(importlib.import_module(f"bert_snli.{name}"), argv))

    return run(f"{PROG} {name}", train, TRAINING_COMMANDS[name].option_names) or codes[0]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    configure_logging()
    if argv and argv[0] in TRAINING:
        return run_training(argv[0], argv[1:])
    args, unknown = build_parser().parse_known_args(argv)
    if unknown:  # argparse would point to the help of all commands
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    say_loading()
    return run_and_leave(f"{PROG} {args.command}", lambda: COMMANDS[args.command].run(args), vars(args))


def entry_point() -> int:
    """Run the command as a program; returns its exit code. `main` does the same within another program.

    Importing PyTorch and transformers creates a million objects and hardly any garbage. Searching them for garbage,
    again and again during the imports and once more when Python exits, takes 1.5 s.
    """
    gc.set_threshold(100_000)
    code = main()
    gc.freeze()
    return code
