"""`bert-snli predict`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_snli.commands.options import add_backend, add_encoding, add_model
from bert_snli.console import quiet_libraries
from bert_snli.errors import BertSnliError

SUMMARY = "label pairs of sentences"
HELP = """\
Say whether the hypothesis follows from the premise (entailment), contradicts it, or neither (neutral).

examples:
  bert-snli predict runs/snli --premise "A man inspects a uniform." --hypothesis "The man is sleeping."
  bert-snli predict runs/snli --input_file pairs.csv --output_file answers.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument("--premise", help="what is taken to be true")
    parser.add_argument("--hypothesis", help="what may follow from it")
    parser.add_argument("--input_file", type=Path, help=".jsonl, .csv or .tsv with columns premise and hypothesis")
    parser.add_argument("--output_file", type=Path, help="answers of --input_file, as jsonl (default: the terminal)")
    add_encoding(parser)
    add_backend(parser)


def run(args: argparse.Namespace) -> None:
    """`bert-snli predict`."""
    from bert_snli.data.pair_files import check_writable, read_pairs, write_answers
    from bert_snli.inference import load_tokenizer, predict_pairs
    from bert_snli.onnx import choose_backend, open_classifier

    quiet_libraries()
    one_pair = args.input_file is None
    if any((side is None) is one_pair for side in (args.premise, args.hypothesis)):
        raise BertSnliError("give either --premise and --hypothesis, or --input_file")
    if one_pair and args.output_file:
        raise BertSnliError("--output_file goes with --input_file; leave it out for a single pair")
    pairs = [(args.premise, args.hypothesis)] if one_pair else read_pairs(args.input_file)
    if args.output_file:
        check_writable(args.output_file)
    answers = predict_pairs(
        open_classifier(args.model, choose_backend(args.model, args.backend)),
        load_tokenizer(args.model),
        pairs,
        max_length=args.max_length,
        truncation=args.truncation,
        batch_size=args.batch_size,
    )
    if one_pair:
        for label, probability in answers[0].items():
            print(f"{label:15}{probability:8.4f}")
    else:
        write_answers(pairs, answers, args.output_file)
