"""`bert-snli quickstart`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_snli.cli.options import add_overwrite
from bert_snli.console import quiet_libraries

SUMMARY = "the whole job on generated data"
HELP = """\
Generate a small SNLI, make a tiny checkpoint in the book's format, convert it, fine-tune it, evaluate it and predict
with it. Needs no network; two CPU cores take about two minutes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--output_dir", type=Path, default=Path("quickstart"), help="where everything goes")
    add_overwrite(parser)


def run(args: argparse.Namespace) -> None:
    """`bert-snli quickstart`."""
    from bert_snli.cli.quickstart_steps import quickstart

    quiet_libraries()
    quickstart(args.output_dir, overwrite_output_dir=args.overwrite_output_dir)
