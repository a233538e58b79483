"""Options that several commands have."""

import argparse
from pathlib import Path

from bert_snli.choices import TRUNCATIONS


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model, a positional argument."""
    parser.add_argument("model", metavar="MODEL", help="fine-tuned model: a folder or a hub id")


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add `--backend`."""
    backend_help = "the library that runs the model (default: torch, or onnx if the folder holds only model.onnx)"
    parser.add_argument("--backend", choices=["torch", "onnx"], help=backend_help)


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add `--overwrite_output_dir`."""
    parser.add_argument("--overwrite_output_dir", action="store_true", help="write into a folder that holds files")


def add_encoding(parser: argparse.ArgumentParser) -> None:
    """Add the options of encoding."""
    length_help = "longest pair in tokens; longer ones are truncated (default: as in fine-tuning)"
    parser.add_argument("--max_length", type=int, help=length_help)
    truncation_help = "from the longer side, in proportion, from one side, or not at all (default: as in fine-tuning)"
    parser.add_argument("--truncation", choices=TRUNCATIONS, help=truncation_help)
    parser.add_argument("--batch_size", type=positive, default=256, help="pairs in a batch")


def positive(text: str) -> int:
    """For `type=`: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more")
    return int(text)


def folder(text: str) -> Path:
    """For `type=`: the path of a folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a folder")
    return Path(text)
