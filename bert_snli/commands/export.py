"""`bert-snli export`."""

from __future__ import annotations

import argparse
import shlex

from bert_snli.console import quiet_libraries
from bert_snli.errors import BertSnliError
from conversion import command as conversion

SUMMARY = "model folder -> ONNX, or the book's files"
HELP = f"""\
With --format onnx, write a fine-tuned model as model.onnx, which ONNX Runtime computes without PyTorch, with its
tokenizer and config.json; predict and evaluate take the folder. What the file computes is compared with PyTorch
before the folder is finished. With --quantize int8 it is less than a third as large and the answers a little different.

example:
  bert-snli export runs/snli --format onnx --output_dir snli-onnx

With the other formats: {conversion.EXPORT_HELP[0].lower()}{conversion.EXPORT_HELP[1:]}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    conversion.add_export_arguments(parser, more_formats=["onnx"])
    parser.add_argument("--quantize", choices=["int8"], help="for onnx: smaller weights, nearly the same answers")


def run(args: argparse.Namespace) -> None:
    """`bert-snli export`."""
    if args.format == "onnx":
        run_onnx(args)
    elif args.quantize:
        raise BertSnliError(f"--quantize {args.quantize}: only for --format onnx; leave it out")
    else:
        conversion.run_export(args)


def run_onnx(args: argparse.Namespace) -> None:
    """Export, then say what was written and how far it is from PyTorch."""
    quiet_libraries()
    from bert_snli.onnx_export import export_onnx

    done = export_onnx(
        str(args.model), args.output_dir, quantize=args.quantize, overwrite_output_dir=args.overwrite_output_dir
    )
    size = f"{done.size / 1e6:.1f} MB"
    if args.quantize:
        size += f", {done.size / done.fp32_size:.0%} of fp32's {done.fp32_size / 1e6:.1f} MB"
    print(f"{args.output_dir}: model.onnx ({size}), config.json and tokenizer")
    print(f"logits within {done.difference:.1e} of PyTorch's on {done.pairs} probe pairs")
    folder = shlex.quote(str(args.output_dir))
    print(f"Next: bert-snli evaluate {folder}")
