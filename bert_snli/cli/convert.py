"""`bert-snli convert`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from bert_snli.cli.options import add_overwrite, folder
from bert_snli.cli.verify import print_proof
from bert_snli.console import quiet_libraries
from bert_snli.errors import BertSnliError
from bert_snli.files import check_output_dir

SUMMARY = "the book's checkpoint -> model folder"
HELP = """\
Convert a checkpoint of the book's (d2l.ai) into a normal `transformers` model folder, and prove it the same model.

SOURCE is bert.small or bert.base (the book's own, downloaded once and cached), a folder or a zip archive with
pretrained.params and vocab.json, or a params file; files of PyTorch and of MXNet are told apart by their content.
Sizes are read from the shapes; the number of heads is known for the book's own models and asked for otherwise.

The folder gets a conversion_certificate.json: every tensor with its SHA-256, and how far each layer's output
is from the book's equations.

examples:
  bert-snli convert bert.small --output_dir models/small
  bert-snli convert my_checkpoint/ --output_dir models/mine --num_attention_heads 3
  bert-snli convert net.params --vocab vocab.json --output_dir models/mine
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("source", metavar="SOURCE", help="bert.small, bert.base, a folder, zip archive or params file")
    parser.add_argument("--output_dir", type=folder, required=True, help="model folder to write")
    parser.add_argument(
        "--vocab", type=Path, help="vocabulary that is not with the weights; nothing can tell if it is theirs"
    )
    parser.add_argument(
        "--framework",
        choices=["pytorch", "mxnet"],
        help="which of the book's two files of bert.small or bert.base to fetch (default: pytorch)",
    )
    parser.add_argument(
        "--num_attention_heads", type=int, help="needed only when the sizes are none of the book's own models"
    )
    parser.add_argument(
        "--keep_case", action="store_true", help="do not lower-case text (the chapter's first form did not)"
    )
    parser.add_argument(
        "--oov_fallback",
        action="store_true",
        help="split unknown words at hyphens and slashes, drop unknown accents: not the book's way (docs/tokenizer.md)",
    )
    parser.add_argument("--allow_nonfinite", action="store_true", help="convert weights that hold NaN or infinity")
    add_overwrite(parser)


def run(args: argparse.Namespace) -> None:
    """`bert-snli convert`."""
    quiet_libraries()
    from bert_snli.model_card import write_converted_card
    from conversion.convert import convert_checkpoint  # torch and transformers are slow to import; --help need not wait

    done = convert_checkpoint(
        _source(args),
        args.output_dir,
        vocabulary=args.vocab,
        num_attention_heads=args.num_attention_heads,
        do_lower_case=not args.keep_case,
        oov_fallback=args.oov_fallback,
        allow_nonfinite=args.allow_nonfinite,
        overwrite_output_dir=args.overwrite_output_dir,
        finish=write_converted_card,
    )
    from conversion.geometry import HEADS, HEADS_BY

    heads, known = done.geometry["num_attention_heads"], HEADS.get(tuple(done.geometry[size] for size in HEADS_BY))
    if known not in (None, heads):
        sys.stderr.write(f"warning: --num_attention_heads {heads}: the book's model of these sizes has {known}\n")
    if done.nonfinite:
        sys.stderr.write(f"warning: NaN or infinite numbers in {', '.join(done.nonfinite)}\n")
    sizes = done.geometry
    print(
        f"{args.output_dir}: {done.source.form} model from {done.source.framework}, {len(done.tensors)} tensors; "
        f"{sizes['num_hidden_layers']} layers x {sizes['hidden_size']} hidden, {sizes['num_attention_heads']} heads, "
        f"{sizes['vocab_size']:,} tokens"
    )
    print_proof(done.proof)
    quoted = shlex.quote(str(args.output_dir))
    if done.source.form == "pretraining":
        print(f"Next: bert-snli finetune --model_name_or_path {quoted} --output_dir runs/snli")
    else:
        print(f"Next: bert-snli evaluate {quoted}")


def _source(args: argparse.Namespace) -> Path:
    from conversion.download import NAMES, fetch

    if args.source in NAMES and not Path(args.source).exists():
        check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir)  # before a long download
        return fetch(args.source, args.framework or "pytorch")
    if args.framework:
        raise BertSnliError(f"--framework {args.framework}: only for {' and '.join(NAMES)}; a file tells its own")
    return Path(args.source)
