"""`bert-snli verify`."""

import argparse
from pathlib import Path

from bert_snli.console import quiet_libraries

SUMMARY = "check a converted folder again"
HELP = """\
Check a converted folder against its certificate: configuration, tokenizer, code, every bit of every tensor, and each
layer's output against d2l's equations.

example:
  bert-snli verify models/small
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder that convert wrote")


def run(args: argparse.Namespace) -> None:
    """`bert-snli verify`."""
    quiet_libraries()
    from conversion.certificate import verify_conversion

    certificate = verify_conversion(args.model)
    tensors = f"{len(certificate.tensors)} tensors bit by bit"
    print(f"{args.model}: as certified; {tensors}, configuration, tokenizer and code")
    print_proof(certificate.proof)


def print_proof(proof: list) -> None:
    """Print the difference of each layer."""
    print(f"{'max |difference| / max |value|     ':38}{'float64':>10}{'as it runs':>12}")
    for entry in proof:
        print(f"  {entry.layer:36}{entry.in_float64:>10.1e}{entry.in_model_dtype:>12.1e}")
