"""Options that several commands share."""

import argparse
from pathlib import Path

from bert_snli.choices import TRUNCATIONS
from bert_snli.console import add_token, assignment


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument `MODEL`."""
    parser.add_argument("model", metavar="MODEL", help="Fine-tuned model: a folder or a Hub id.")


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a model is loaded."""
    add_hub(parser)
    dtype_help = "Precision of the weights. bfloat16 may be faster. (default: as in the folder, normally float32)"
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help=dtype_help)
    backend_help = "Library that runs the model. (default: torch; onnx if the folder has only model.onnx)"
    parser.add_argument("--backend", choices=["torch", "onnx"], help=backend_help)


def add_hub(parser: argparse.ArgumentParser) -> None:
    """Add the options for a model on the Hub."""
    parser.add_argument("--revision", help="Branch, tag or commit of a model on the Hub. (default: main)")
    add_token(parser)


def add_assignments(parser: argparse.ArgumentParser, name: str, metavar: str, text: str) -> None:
    """Add an option whose values are assignments."""
    parser.add_argument(name, nargs="+", action="extend", type=assignment, default=[], metavar=metavar, help=text)


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add `--overwrite_output_dir`."""
    parser.add_argument("--overwrite_output_dir", action="store_true", help="Write into a folder that is not empty.")


def add_encoding(parser: argparse.ArgumentParser) -> None:
    """Add the options that control how pairs are encoded."""
    length_help = "Maximum length of a pair in tokens. Longer pairs are truncated. (default: as in fine-tuning)"
    parser.add_argument("--max_length", type=int, help=length_help)
    truncation_help = "How to truncate pairs, see bert-snli finetune --help. (default: as in fine-tuning)"
    parser.add_argument("--truncation", choices=TRUNCATIONS, help=truncation_help)
    parser.add_argument("--batch_size", type=positive, default=256, metavar="N", help="Pairs in a batch.")


def positive(text: str) -> int:
    """Parse a whole number above 0, for `type=`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more")
    return int(text)


def folder(text: str) -> Path:
    """Parse the path of a folder, for `type=`."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; give a folder")
    return Path(text)
