"""`bert-snli verify`."""

import argparse
from pathlib import Path

from bert_snli.console import quiet_libraries

SUMMARY = "Check a converted model folder against its certificate."
HELP = """\
Check a converted model folder against its certificate: configuration, tokenizer, code, all bits of each tensor, and the
output of each layer, which is compared with d2l's equations.

example:
  bert-snli verify models/small
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="Model folder that bert-snli convert wrote.")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
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
