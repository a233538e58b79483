"""`bert-snli predict`."""

import argparse
import logging
from itertools import islice
from pathlib import Path

from bert_snli.cli.options import add_backend, add_encoding, add_model
from bert_snli.console import quiet_libraries
from bert_snli.errors import BertSnliError

SUMMARY = "Predict the labels of sentence pairs."
HELP = """\
Predict whether a hypothesis follows from a premise (entailment), contradicts it (contradiction), or neither (neutral).
An input file may be larger than memory. The predictions are in the order of the file.

examples:
  bert-snli predict runs/snli --premise "A dog runs." --hypothesis "It runs."
  bert-snli predict runs/snli --input_file pairs.csv --output_file out.jsonl
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
    parser.add_argument(
        "--input_file", type=Path, help=".jsonl, .csv or .tsv file with columns premise and hypothesis."
    )
    parser.add_argument("--output_file", type=Path, help=".jsonl file for the predictions. (default: print them)")
    add_encoding(parser)
    add_backend(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    one_pair = args.input_file is None
    if any((side is None) is one_pair for side in (args.premise, args.hypothesis)):
        what = "no pair" if one_pair else "a pair and a file"
        raise BertSnliError(f"{what}: give either --premise and --hypothesis, or --input_file")
    for name in ("premise", "hypothesis") if one_pair else ():
        if not getattr(args, name).strip():
            raise BertSnliError(f"--{name}: the text is empty; give a sentence")
    if one_pair and args.output_file:
        raise BertSnliError("--output_file: needs --input_file; leave it out for a single pair")
    if args.output_file and args.output_file.suffix in {".csv", ".tsv", ".parquet"}:
        raise BertSnliError(f"--output_file {args.output_file}: predictions are lines of JSON; name it .jsonl")

    from tqdm.auto import tqdm

    from bert_snli.data.pair_files import check_writable, count_pairs, format_predictions, iterate_pairs, open_output
    from bert_snli.fast.machine import keep_freed_memory
    from bert_snli.inference import load_tokenizer, open_classifier
    from bert_snli.prediction import Predictor

    quiet_libraries()
    num_pairs = 1 if one_pair else count_pairs(args.input_file)
    if args.output_file:
        check_writable(args.output_file)
    keep_freed_memory()
    options = {name: getattr(args, name) for name in ("max_length", "truncation", "batch_size")}
    model, tokenizer = open_classifier(args.model, args.backend), load_tokenizer(args.model)
    predictor = Predictor(model, tokenizer, **options)
    if one_pair:
        if predictor.accelerator.is_main_process:
            for note in predictor.encoder.describe_problems(args.premise, args.hypothesis):
                logger.info("note: %s", note)
            for label, probability in predictor([(args.premise, args.hypothesis)])[0].items():
                print(f"{label:15}{probability:8.4f}")
        return
    chunks = predictor.stream(islice(iterate_pairs(args.input_file), num_pairs))
    if not predictor.accelerator.is_main_process:
        for _ in chunks:  # the iteration computes the share of this process
            pass
        return
    hide = None if args.output_file else True  # the bar would mix with predictions on the terminal
    with open_output(args.output_file) as file, tqdm(total=num_pairs, unit="pair", leave=False, disable=hide) as bar:
        for pairs, predictions in chunks:
            file.write(format_predictions(pairs, predictions))
            bar.update(len(pairs))
