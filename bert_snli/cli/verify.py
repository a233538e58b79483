"""`bert-snli verify`."""

import argparse
from pathlib import Path

from bert_snli.console import quiet_libraries
from bert_snli.errors import BertSnliError

SUMMARY = "check a converted folder again"
HELP = """\
Check a converted folder against its certificate: configuration, tokenizer, code, every bit of every tensor, and each
layer's output against d2l's equations. With --against, the source's tensors too.

examples:
  bert-snli verify models/small
  bert-snli verify models/small --against bert.small.torch.zip
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder that convert wrote")
    parser.add_argument("--against", metavar="SOURCE", type=Path, help="what it was converted from")
    parser.add_argument("--vocab_file", type=Path, help="vocabulary of SOURCE, if it is not next to it")


def run(args: argparse.Namespace) -> None:
    """`bert-snli verify`."""
    if args.vocab_file and not args.against:
        raise BertSnliError(f"--vocab_file {args.vocab_file}: is the vocabulary of a SOURCE; add --against SOURCE")

    quiet_libraries()
    from conversion.certificate import read_certificate, verify_conversion
    from conversion.download import CHECKPOINT_NAMES, download_checkpoint

    source = args.against
    if str(source) in CHECKPOINT_NAMES and not source.exists():
        source = download_checkpoint(str(source), read_certificate(args.model).source.framework)
    certificate = verify_conversion(args.model, source, args.vocab_file)
    against = f" and in {args.against}" if args.against else ""
    tensors = f"{len(certificate.tensors)} tensors bit by bit{against}"
    print(f"{args.model}: as certified; {tensors}, configuration, tokenizer and code")
    print_proof(certificate.proof)


def print_proof(proof: list) -> None:
    """Print the difference of each layer."""
    print(f"{'max |difference| / max |value|     ':38}{'float64':>10}{'as it runs':>12}")
    for entry in proof:
        print(f"  {entry.layer:36}{entry.in_float64:>10.1e}{entry.in_model_dtype:>12.1e}")
