"""`bert-snli verify`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_snli.console import quiet_libraries
from bert_snli.errors import BertSnliError

SUMMARY = "check a converted folder again"
HELP = """\
Check a converted folder against its certificate: sizes, vocabulary, every bit of every tensor, and each layer's output
against the book's equations. With --against, the source's tensors too.

examples:
  bert-snli verify models/small
  bert-snli verify models/small --against bert.small.torch.zip
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder that convert wrote")
    parser.add_argument("--against", metavar="SOURCE", type=Path, help="what it was converted from")
    parser.add_argument("--vocab", type=Path, help="vocabulary of SOURCE, if it is not next to it")


def run(args: argparse.Namespace) -> None:
    """`bert-snli verify`."""
    if args.vocab and not args.against:
        raise BertSnliError(f"--vocab {args.vocab}: is the vocabulary of a SOURCE; add --against SOURCE")

    quiet_libraries()
    from conversion.certificate import read_certificate, verify_conversion
    from conversion.download import NAMES, fetch

    against_path = args.against
    if str(args.against) in NAMES and not args.against.exists():
        against_path = fetch(str(args.against), read_certificate(args.model).source.framework)
    done = verify_conversion(args.model, against_path, args.vocab)
    against = f" and in {args.against}" if args.against else ""
    print(f"{args.model}: as certified; {len(done.tensors)} tensors bit by bit{against}, tokenizer, sizes and code")
    print_proof(done.proof)


def print_proof(proof: list) -> None:
    """Print the table of differences, in the order of the layers."""
    print(f"{'max |difference| / max |value|     ':38}{'float64':>10}{'as it runs':>12}")
    for entry in proof:
        print(f"  {entry.layer:36}{_difference(entry.exact):>10}{_difference(entry.as_run):>12}")


def _difference(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"
