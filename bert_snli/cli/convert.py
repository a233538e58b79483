"""`bert-snli convert`."""

import argparse
import shlex
from pathlib import Path

from bert_snli.cli.options import add_overwrite, folder
from bert_snli.cli.verify import print_proof
from bert_snli.console import quiet_libraries

SUMMARY = "Convert a d2l checkpoint to a transformers model folder."
HELP = """\
Convert a d2l checkpoint (PyTorch or MXNet) to a transformers model folder, and prove that both give the same results.

SOURCE is one of:
  bert.small, bert.base    d2l's own checkpoints, downloaded once and cached
  a folder or zip archive  with pretrained.params and vocab.json
  a params file            with --vocab_file, if vocab.json is not next to it

The proof is in conversion_certificate.json: the SHA-256 of each tensor, and the difference between the output of each
layer and d2l's equations.

examples:
  bert-snli convert bert.small --output_dir models/small
  bert-snli convert checkpoint --output_dir models/mine --num_attention_heads 3
  bert-snli convert net.params --vocab_file vocab.json --output_dir models/mine
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("source", metavar="SOURCE", help="Name or path of the checkpoint, see above.")
    parser.add_argument("--output_dir", type=folder, required=True, help="Model folder to write.")
    parser.add_argument("--vocab_file", type=Path, help="Vocabulary file. (default: vocab.json in or next to SOURCE)")
    parser.add_argument("--framework", choices=["pytorch", "mxnet"], help="Format to download. (default: pytorch)")
    parser.add_argument("--num_attention_heads", type=int, help="Required if SOURCE is not one of d2l's models.")
    parser.add_argument("--keep_case", action="store_true", help="Do not convert text to lower case.")
    add_overwrite(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    quiet_libraries()
    from conversion.convert import convert_checkpoint

    certificate = convert_checkpoint(
        args.source,
        args.output_dir,
        vocab_file=args.vocab_file,
        framework=args.framework,
        num_attention_heads=args.num_attention_heads,
        do_lower_case=not args.keep_case,
        overwrite_output_dir=args.overwrite_output_dir,
    )
    origin, sizes = certificate.source, certificate.geometry
    print(
        f"{args.output_dir}: {origin['model_kind']} model from {origin['framework']}, "
        f"{len(certificate.tensors)} tensors; {sizes['num_hidden_layers']} layers x {sizes['hidden_size']} hidden, "
        f"{sizes['num_attention_heads']} attention heads, {sizes['vocab_size']:,} tokens"
    )
    print_proof(certificate.proof)
    output_dir = shlex.quote(str(args.output_dir))
    if origin["model_kind"] == "pretraining":
        print(f"Next: bert-snli finetune {output_dir} --output_dir runs/snli")
    else:
        print(f"Next: bert-snli evaluate {output_dir}")
