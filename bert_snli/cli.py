"""The `bert-snli` command."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bert_snli.console import OneLineErrorParser, quiet_libraries, run, say_what_is_missing
from bert_snli.errors import BertSnliError
from bert_snli.folders import check_output_dir
from conversion.command import (
    CONVERT_HELP,
    EXPORT_HELP,
    VERIFY_HELP,
    add_convert_arguments,
    add_export_arguments,
    add_verify_arguments,
    run_convert,
    run_export,
    run_verify,
)

PROG = "bert-snli"
DESCRIPTION = """\
The BERTs of Dive into Deep Learning (d2l.ai, section 15.7) in the Hugging Face ecosystem.

  bert-snli quickstart                   all of it on generated data, in two minutes
  bert-snli convert SOURCE ...           a checkpoint of the book's -> a model folder
  bert-snli finetune ...                 train it on SNLI
  bert-snli evaluate MODEL ...           measure it
  bert-snli predict MODEL ...            ask it
  bert-snli verify MODEL ...             check a conversion again
  bert-snli export MODEL ...             back to the book's files

Each has its own --help.
"""


QUICKSTART_HELP = """\
Generate a small SNLI, make a tiny checkpoint in the book's format, convert it, fine-tune it, evaluate it and predict
with it. Needs no network; two CPU cores take about two minutes.
"""
EVALUATE_HELP = """\
Measure a fine-tuned model on a split of SNLI: accuracy, macro F1, precision and recall of each label, confusion matrix.
Writes eval_results_SPLIT.json and confusion_matrix_SPLIT.png.

example:
  bert-snli evaluate runs/snli --dataset_name_or_path snli_1.0.zip --split test
"""
PREDICT_HELP = """\
Say whether the hypothesis follows from the premise (entailment), contradicts it, or neither (neutral).

examples:
  bert-snli predict runs/snli --premise "A man inspects a uniform." --hypothesis "The man is sleeping."
  bert-snli predict runs/snli --input_file pairs.csv --output_file answers.jsonl
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands but `finetune`, whose options are the fields of its recipe."""
    parser = OneLineErrorParser(prog=PROG, description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=importlib.metadata.version("bert-snli"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    quickstart = commands.add_parser("quickstart", help="the whole job on generated data", description=QUICKSTART_HELP)
    quickstart.add_argument("--output_dir", type=Path, default=Path("quickstart"), help="where everything goes")
    _add_overwrite(quickstart)
    quickstart.set_defaults(run=run_quickstart)

    convert = commands.add_parser("convert", help="the book's checkpoint -> model folder", description=CONVERT_HELP)
    add_convert_arguments(convert)
    convert.set_defaults(run=run_convert)

    export = commands.add_parser("export", help="model folder -> the book's files", description=EXPORT_HELP)
    add_export_arguments(export)
    export.set_defaults(run=run_export)

    verify = commands.add_parser("verify", help="check a converted folder again", description=VERIFY_HELP)
    add_verify_arguments(verify)
    verify.set_defaults(run=run_verify)

    commands.add_parser("finetune", help="train on SNLI", add_help=False)

    evaluate = commands.add_parser("evaluate", help="measure a fine-tuned model", description=EVALUATE_HELP)
    _add_model(evaluate)
    evaluate.add_argument("--dataset_name_or_path", default="stanfordnlp/snli", help="as for finetune")
    evaluate.add_argument("--split", choices=["train", "validation", "test"], default="test", help="which part")
    evaluate.add_argument(
        "--text_source", choices=["raw", "parse"], default="raw", help="sentences as typed, or the leaves of parses"
    )
    evaluate.add_argument("--output_dir", type=Path, help="where the report goes (default: the model folder)")
    _add_encoding(evaluate)
    evaluate.set_defaults(run=run_evaluate)

    predict = commands.add_parser("predict", help="label pairs of sentences", description=PREDICT_HELP)
    _add_model(predict)
    predict.add_argument("--premise", help="what is taken to be true")
    predict.add_argument("--hypothesis", help="what may follow from it")
    predict.add_argument("--input_file", type=Path, help=".jsonl, .csv or .tsv with columns premise and hypothesis")
    predict.add_argument("--output_file", type=Path, help="answers of --input_file, as jsonl (default: the terminal)")
    _add_encoding(predict)
    predict.set_defaults(run=run_predict)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="fine-tuned model: a folder or a hub id")


def _add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite_output_dir", action="store_true", help="write into a folder that holds files")


def _add_encoding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max_length", type=int, help="longest pair in tokens; longer ones are truncated (default: as in fine-tuning)"
    )
    parser.add_argument(
        "--truncation",
        choices=["longest", "ratio", "only_first", "only_second", "do_not_truncate"],
        help="how: from the longer side, in proportion, from one side, or not at all (default: as in fine-tuning)",
    )
    parser.add_argument("--batch_size", type=_positive, default=256, help="pairs in a batch")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more")
    return int(text)


def run_quickstart(args: argparse.Namespace) -> None:
    """`bert-snli quickstart`."""
    from bert_snli.quickstart import quickstart

    quiet_libraries()
    quickstart(args.output_dir, overwrite_output_dir=args.overwrite_output_dir)


def run_evaluate(args: argparse.Namespace) -> None:
    """`bert-snli evaluate`."""
    from bert_snli.evaluation.report import evaluate_model, format_report, save_report

    quiet_libraries()
    if args.output_dir is None and not Path(args.model).is_dir():
        raise BertSnliError(f"{args.model}: not a local folder to write the report into; add --output_dir")
    output_dir = args.output_dir or Path(args.model)
    check_output_dir(output_dir, overwrite=True)
    results = evaluate_model(
        args.model,
        args.dataset_name_or_path,
        split=args.split,
        text_source=args.text_source,
        max_length=args.max_length,
        truncation=args.truncation,
        batch_size=args.batch_size,
    )
    files = save_report(results, output_dir)
    print(format_report(results), "", *files, sep="\n")


def run_predict(args: argparse.Namespace) -> None:
    """`bert-snli predict`."""
    from bert_snli.data.pair_files import check_writable, read_pairs, write_answers
    from bert_snli.inference import load_classifier, load_tokenizer, predict_pairs

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
        load_classifier(args.model),
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


def run_finetune(argv: list[str]) -> int:
    """`bert-snli finetune`."""
    try:
        from bert_snli import launch
    except ModuleNotFoundError as error:
        return run(f"{PROG} finetune", partial(say_what_is_missing, error))
    return launch.main(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["finetune"]:
        return run_finetune(argv[1:])
    args = build_parser().parse_args(argv)
    command: Callable[[argparse.Namespace], None] = args.run
    return run(f"{PROG} {args.command}", lambda: command(args))


if __name__ == "__main__":
    sys.exit(main())
