"""`bert-snli predict`."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from bert_snli.choices import PREDICTION_FORMATS
from bert_snli.cli.options import add_assignments, add_encoding, add_loading, add_model
from bert_snli.console import quiet_libraries
from bert_snli.errors import BertSnliError

if TYPE_CHECKING:
    from bert_snli.prediction import Predictor

SUMMARY = "Predict the labels of sentence pairs."
HELP = """\
Predict whether a hypothesis follows from a premise (entailment), contradicts it (contradiction), or neither (neutral).
An input file may be larger than memory. The predictions are in the order of the file.

examples:
  bert-snli predict runs/snli --premise "A dog runs." --hypothesis "It runs."
  bert-snli predict runs/snli --input_file pairs.csv --output_file out.jsonl
  cat pairs.csv | bert-snli predict runs/snli --input_file - --output_format csv
  accelerate launch --num_processes 2 -m bert_snli.cli predict runs/snli ...
"""
logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.usage = """%(prog)s MODEL --premise TEXT --hypothesis TEXT [options]
       %(prog)s MODEL --input_file FILE [options]"""
    add_model(parser)
    parser.add_argument("--premise", metavar="TEXT", help="First sentence: the text that is assumed to be true.")
    parser.add_argument("--hypothesis", metavar="TEXT", help="Second sentence: the text that may follow from it.")
    input_help = ".jsonl, .csv or .tsv file with columns premise and hypothesis. -: standard input."
    parser.add_argument("--input_file", type=Path, help=input_help)
    add_assignments(parser, "--columns", "ROLE=NAME", "Names of the columns premise and hypothesis.")
    parser.add_argument("--output_file", type=Path, help="File for the predictions. (default: print them)")
    format_help = "Format. (default: from the name of --output_file, otherwise jsonl; a table for one pair)"
    parser.add_argument("--output_format", choices=PREDICTION_FORMATS, help=format_help)
    add_encoding(parser)
    add_loading(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    check_arguments(args)
    from bert_snli.data.pair_files import COLUMNS, check_roles, check_writable, count_pairs, iterate_pairs, open_input
    from bert_snli.fast.machine import keep_freed_memory
    from bert_snli.inference import load_tokenizer, open_classifier
    from bert_snli.prediction import Predictor

    quiet_libraries()
    columns = dict(args.columns)
    check_roles(columns)
    source: dict = {"name": f"input_file {args.input_file}", "columns": [columns.get(role, role) for role in COLUMNS]}
    with open_input(args.input_file) if args.input_file else nullcontext() as input_file:
        num_pairs = count_pairs(input_file, **source) if input_file else 1
        if args.output_file:
            check_writable(args.output_file)
        keep_freed_memory()
        options = {name: getattr(args, name) for name in ("max_length", "truncation", "batch_size")}
        model = open_classifier(args.model, args.backend, revision=args.revision, dtype=args.dtype)
        predictor = Predictor(model, load_tokenizer(args.model, args.revision), **options)
        pairs = (
            islice(iterate_pairs(input_file, **source), num_pairs) if input_file else [(args.premise, args.hypothesis)]
        )
        chunks = predictor.stream(pairs)
        if predictor.accelerator.is_main_process:
            write(args, predictor, chunks, num_pairs)
        else:
            for _ in chunks:  # the iteration computes the share of this process
                pass


def check_arguments(args: argparse.Namespace) -> None:
    """Check the combination of the options."""
    one_pair = args.input_file is None
    if any((side is None) is one_pair for side in (args.premise, args.hypothesis)):
        what = "no pair" if one_pair else "a pair and a file"
        raise BertSnliError(f"{what}: give either --premise and --hypothesis, or --input_file")
    for name in ("premise", "hypothesis") if one_pair else ():
        if not getattr(args, name).strip():
            raise BertSnliError(f"--{name}: the text is empty; give a sentence")
    if one_pair and args.output_file:
        raise BertSnliError("--output_file: needs --input_file; leave it out for a single pair")
    suffix = args.output_file.suffix[1:].lower() if args.output_file else ""
    if suffix in ("tsv", "parquet"):
        raise BertSnliError(f"--output_file {args.output_file}: unknown format; name it .jsonl, .json or .csv")
    if args.output_format is None and not one_pair:
        args.output_format = suffix if suffix in PREDICTION_FORMATS else "jsonl"
    if str(args.input_file) == "-" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise BertSnliError("--input_file -: several processes cannot share standard input; give a file")


def write(args: argparse.Namespace, predictor: Predictor, chunks: Iterator, num_pairs: int) -> None:
    """Write the predictions in the chosen format. One pair is printed as a table with notes about the pair."""
    from tqdm.auto import tqdm

    from bert_snli.data.pair_files import open_output, write_predictions

    if args.input_file is None:
        for note in predictor.encoder.describe_problems(args.premise, args.hypothesis):
            logger.info("note: %s", note)
    if args.output_format is None:
        ((_, (scores,)),) = chunks
        print(*(f"{label:15}{probability:8.4f}" for label, probability in scores.items()), sep="\n")
        return
    hide = None if args.output_file else True  # the bar would mix with predictions on the terminal
    with open_output(args.output_file) as file, tqdm(total=num_pairs, unit="pair", leave=False, disable=hide) as bar:

        def show_progress() -> Iterator:
            for chunk in chunks:
                yield chunk
                bar.update(len(chunk[0]))

        write_predictions(file, show_progress(), args.output_format)
