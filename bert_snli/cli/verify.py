"""`bert-snli verify`."""

import argparse
from pathlib import Path

from bert_snli.console import quiet_libraries

SUMMARY = "Check a converted model folder against its certificate."
HELP = """\
Check a converted model folder against its certificate: configuration, tokenizer, code and all bits of each tensor.
Also compare the output of each layer with d2l's equations.

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
    print(f"{args.model}: matches its certificate ({len(certificate.tensors)} tensors, configuration, tokenizer, code)")
    print_proof(certificate.proof)


def print_proof(proof: list) -> None:
    """Print the difference of each layer from d2l's equations."""
    print(f"{'max |difference| / max |value|     ':38}{'float64':>10}{'model dtype':>13}")
    for entry in proof:
        print(f"  {entry.layer:36}{entry.in_float64:>10.1e}{entry.in_model_dtype:>13.1e}")
