"""`bert-snli export`."""

import argparse
import shlex
from pathlib import Path

from bert_snli.cli.options import add_overwrite, folder
from bert_snli.console import quiet_libraries
from bert_snli.errors import BertSnliError

FORMATS = ("d2l-torch", "d2l-mxnet", "onnx")
SUMMARY = "Export a model to ONNX or to d2l format."
HELP = """\
--format onnx writes a fine-tuned model as model.onnx, with its tokenizer and config.json. ONNX Runtime runs it without
PyTorch; bert-snli predict and evaluate accept the folder. --quantize int8: three times smaller, with slightly other
predictions.

--format d2l-torch or d2l-mxnet writes pretrained.params and vocab.json, which d2l's code loads with load_state_dict or
load_parameters. The export of a converted model restores the original tensors bit by bit. A fine-tuned model can be
exported if it has d2l's classifier head (bert-snli finetune --classifier_head pooler).

examples:
  bert-snli export runs/snli --format onnx --output_dir snli-onnx
  bert-snli export models/small --format d2l-mxnet --output_dir small-mxnet
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="Model folder.")
    parser.add_argument("--format", choices=FORMATS, required=True, help="Format of the output.")
    parser.add_argument("--output_dir", type=folder, required=True, help="Folder to write.")
    add_overwrite(parser)
    parser.add_argument("--quantize", choices=["int8"], help="For onnx: 8-bit weights.")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.quantize and args.format != "onnx":
        raise BertSnliError(f"--quantize {args.quantize}: only for --format onnx; leave it out")
    quiet_libraries()
    overwrite = args.overwrite_output_dir
    if args.format != "onnx":
        from conversion.export import export_checkpoint

        checkpoint = export_checkpoint(args.model, args.output_dir, format=args.format, overwrite_output_dir=overwrite)
        print(f"{args.output_dir}: pretrained.params with {len(checkpoint.arrays)} tensors, and vocab.json")
        return
    from bert_snli.onnx_export import export_onnx

    result = export_onnx(str(args.model), args.output_dir, quantize=args.quantize, overwrite_output_dir=overwrite)
    size = f"{result.size / 1e6:.1f} MB"
    if args.quantize:
        size += f", {result.size / result.fp32_size:.0%} of fp32's {result.fp32_size / 1e6:.1f} MB"
    print(f"{args.output_dir}: model.onnx ({size}), config.json and tokenizer")
    print(f"logits within {result.difference:.1e} of PyTorch's on {result.pairs} random pairs")
    print(f"Next: bert-snli evaluate {shlex.quote(str(args.output_dir))}")
