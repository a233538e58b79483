"""The `convert` command: its options and its closing line. `bert-snli convert` and `python -m conversion` are this."""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_snli.console import quiet_libraries

DESCRIPTION = """\
Convert a checkpoint of the book's (d2l.ai) into a normal `transformers` model folder.

SOURCE is a folder or a zip archive with pretrained.params and vocab.json, or a params file with vocab.json beside it.
Sizes are read from the shapes; the number of heads is known for the book's own models and asked for otherwise.

The book's own archives are at http://d2l-data.s3-accelerate.amazonaws.com/bert.small.torch.zip and bert.base.torch.zip.

examples:
  bert-snli convert bert.small.torch.zip --output_dir models/small
  bert-snli convert my_checkpoint/ --output_dir models/mine --num_attention_heads 3
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `convert` to `parser`."""
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder, zip archive or params file")
    parser.add_argument("--output_dir", type=Path, required=True, help="model folder to write")
    parser.add_argument(
        "--num_attention_heads", type=int, help="needed only when the sizes are none of the book's own models"
    )
    parser.add_argument(
        "--keep_case", action="store_true", help="do not lower-case text (the chapter's first form did not)"
    )
    parser.add_argument(
        "--overwrite_output_dir", action="store_true", help="write into a folder that already holds files"
    )


def main(args: argparse.Namespace) -> None:
    """Convert, then say what was written.

    Raises:
        BertSnliError: see `conversion.convert.convert`.
    """
    quiet_libraries()
    from conversion.convert import convert  # torch and transformers are slow to import; --help need not wait

    done = convert(
        args.source,
        args.output_dir,
        num_attention_heads=args.num_attention_heads,
        do_lower_case=not args.keep_case,
        overwrite_output_dir=args.overwrite_output_dir,
    )
    config = done.config
    print(
        f"{args.output_dir}: {done.form} model, {done.num_tensors} tensors, {done.num_parameters:,} parameters; "
        f"{config.num_hidden_layers} layers x {config.hidden_size} hidden, {config.num_attention_heads} heads, "
        f"{config.vocab_size:,} tokens"
    )
    if done.form == "pretraining":
        print(f"Next: bert-snli finetune --model_name_or_path {args.output_dir} --output_dir runs/snli")
