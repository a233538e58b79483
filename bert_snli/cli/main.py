"""The `bert-snli` program: the table of its commands, and the parser."""

import argparse
import gc
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from bert_snli.cli import config, convert, evaluate, export, predict, push, quickstart, serve, verify
from bert_snli.console import OneLineErrorParser, configure_logging, log_loading, run, run_and_leave, use_token
from bert_snli.training.command_line import COMMANDS as TRAINING_COMMANDS
from bert_snli.training.command_line import split_arguments

DESCRIPTION = """\
Convert, fine-tune and use the BERT models of Dive into Deep Learning (d2l.ai, section 15.7) with Hugging Face.

commands:
{commands}

bert-snli COMMAND --help shows the options of a command.
"""
# The options of training commands are the fields of a dataclass. Each other command is a module with SUMMARY, HELP,
# `add_arguments` and `run`.
TRAINING = {
    "pretrain": "Pretrain a model on plain text.",
    "finetune": "Fine-tune a model on SNLI or on your own pairs.",
}
MODULES = (quickstart, convert, verify, evaluate, predict, serve, push, export, config)
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in MODULES}
ORDER_OF_HELP = "quickstart convert verify pretrain finetune evaluate predict serve push export config".split()


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands. Training commands parse their own options."""
    lines = "\n".join(f"  {name:12}{TRAINING.get(name) or COMMANDS[name].SUMMARY}" for name in ORDER_OF_HELP)
    parser = OneLineErrorParser(prog="bert-snli", description=DESCRIPTION.format(commands=lines))
    parser.add_argument("--version", action="version", version=importlib.metadata.version("bert-snli"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    for name in TRAINING:
        commands.add_parser(name, add_help=False).set_defaults(parser=parser)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, description=command.HELP)
        subparser.set_defaults(parser=subparser)
        command.add_arguments(subparser)
    return parser


def run_training(name: str, argv: list[str]) -> int:
    """Run `bert-snli finetune` or `bert-snli pretrain`; return the exit code."""
    codes: list[int] = []

    def train() -> None:
        command = TRAINING_COMMANDS[name]
        command.parse(split_arguments(argv, command.arguments_class)[1])  # prints help and errors within a second
        log_loading()
        from bert_snli import launch

        codes.append(launch.main(importlib.import_module(f"bert_snli.{name}"), argv))

    return run(f"bert-snli {name}", train, TRAINING_COMMANDS[name].option_names - set(argv)) or codes[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    configure_logging()
    with use_token(sys.argv[1:] if argv is None else argv) as words:
        return run_words(words)


def run_words(argv: list[str]) -> int:
    """Run the command in `argv`, which holds no token; return its exit code."""
    if argv and argv[0] in TRAINING:
        return run_training(argv[0], argv[1:])
    args, unknown = build_parser().parse_known_args(argv)
    if unknown:  # argparse would refer to the help of the program, not of the command
        args.parser.refuse(unknown)
    command = COMMANDS[args.command]
    if command is not config:
        log_loading()
    # A name that was given as a value, such as a folder `report`, is no option in a message.
    options = {action.dest for action in args.parser._actions if action.option_strings} - set(argv)
    return run_and_leave(f"bert-snli {args.command}", lambda: command.run(args), options)


def entry_point() -> int:
    """Run the command as a program; return its exit code.

    Importing PyTorch and transformers creates a million objects and hardly any garbage. Garbage collection during the
    imports and when Python exits would take 1.5 s.
    """
    gc.set_threshold(100_000)
    code = main()
    gc.freeze()
    return code
