"""The commands `convert`, `export` and `verify`: their options and what they print."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bert_snli.console import quiet_libraries
from bert_snli.errors import BertSnliError
from bert_snli.files import check_output_dir

CONVERT_HELP = """\
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
EXPORT_HELP = """\
Write a model folder as pretrained.params and vocab.json, which the book's own code loads: with load_state_dict
(d2l-torch) or load_parameters (d2l-mxnet). Converting and exporting again gives back every tensor bit by bit.
A fine-tuned model needs the book's head for it: bert-snli finetune --classifier_head pooler.

example:
  bert-snli export models/small --format d2l-mxnet --output_dir small-mxnet
"""
VERIFY_HELP = """\
Check a converted folder against its certificate: sizes, vocabulary, every bit of every tensor, and each layer's output
against the book's equations. With --against, the source's tensors too.

examples:
  bert-snli verify models/small
  bert-snli verify models/small --against bert.small.torch.zip
"""


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `convert` to `parser`."""
    parser.add_argument("source", metavar="SOURCE", help="bert.small, bert.base, a folder, zip archive or params file")
    parser.add_argument("--output_dir", type=_folder, required=True, help="model folder to write")
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
    _add_overwrite(parser)


def add_export_arguments(parser: argparse.ArgumentParser, *, more_formats: Sequence[str] = ()) -> None:
    """Add the options of `export` to `parser`; `more_formats` are the caller's own."""
    formats = ["d2l-torch", "d2l-mxnet", *more_formats]
    parser.add_argument("model", metavar="MODEL", type=Path, help="model folder")
    parser.add_argument("--format", choices=formats, required=True, help="whose code is to load it")
    parser.add_argument("--output_dir", type=_folder, required=True, help="folder to write")
    _add_overwrite(parser)


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `verify` to `parser`."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder that convert wrote")
    parser.add_argument("--against", metavar="SOURCE", type=Path, help="what it was converted from")
    parser.add_argument("--vocab", type=Path, help="vocabulary of SOURCE, where it does not lie beside it")


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a folder")
    return Path(text)


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite_output_dir", action="store_true", help="write into a folder that already holds files"
    )


def run_convert(args: argparse.Namespace) -> None:
    """Convert, then say what was written.

    Raises:
        BertSnliError: see `conversion.convert.convert`.
    """
    quiet_libraries()
    from conversion.convert import convert  # torch and transformers are slow to import; --help need not wait

    done = convert(
        _source(args),
        args.output_dir,
        vocabulary=args.vocab,
        num_attention_heads=args.num_attention_heads,
        do_lower_case=not args.keep_case,
        oov_fallback=args.oov_fallback,
        allow_nonfinite=args.allow_nonfinite,
        overwrite_output_dir=args.overwrite_output_dir,
    )
    from conversion.geometry import HEADS, HEADS_BY  # imports the model classes, which takes seconds

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
    _print_proof(done.proof)
    folder = shlex.quote(str(args.output_dir))
    if done.source.form == "pretraining":
        print(f"Next: bert-snli finetune --model_name_or_path {folder} --output_dir runs/snli")
    else:
        print(f"Next: bert-snli evaluate {folder}")


def _source(args: argparse.Namespace) -> Path:
    from conversion.download import NAMES, fetch

    if args.source in NAMES and not Path(args.source).exists():
        check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir)  # before a long download
        return fetch(args.source, args.framework or "pytorch")
    if args.framework:
        raise BertSnliError(f"--framework {args.framework}: only for {' and '.join(NAMES)}; a file tells its own")
    return Path(args.source)


def run_export(args: argparse.Namespace) -> None:
    """Export, then say what was written.

    Raises:
        BertSnliError: see `conversion.export.export`.
    """
    quiet_libraries()
    from conversion.export import export

    book = export(args.model, args.output_dir, format=args.format, overwrite_output_dir=args.overwrite_output_dir)
    print(f"{args.output_dir}: pretrained.params ({len(book.tensors)} tensors) and vocab.json, as {args.format}")


def run_verify(args: argparse.Namespace) -> None:
    """Verify, then say what was checked.

    Raises:
        BertSnliError: see `conversion.certificate.verify`.
    """
    quiet_libraries()
    from conversion.certificate import read_certificate, verify
    from conversion.download import NAMES, fetch

    if args.vocab and not args.against:
        raise BertSnliError(f"--vocab {args.vocab}: is the vocabulary of a SOURCE; add --against SOURCE")
    against_path = args.against
    if str(args.against) in NAMES and not args.against.exists():
        against_path = fetch(str(args.against), read_certificate(args.model).source.framework)
    done = verify(args.model, against_path, args.vocab)
    against = f" and in {args.against}" if args.against else ""
    print(f"{args.model}: as certified; {len(done.tensors)} tensors bit by bit{against}, tokenizer, sizes and code")
    _print_proof(done.proof)


def _print_proof(proof: list) -> None:
    """The table of differences, layers in their order."""
    from conversion.card import figure

    print(f"{'max |difference| from the equations':38}{'float64':>10}{'as it runs':>12}")
    for entry in proof:
        print(f"  {entry.layer:36}{figure(entry.exact):>10}{figure(entry.as_run):>12}")
