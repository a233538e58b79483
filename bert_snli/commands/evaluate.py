"""`bert-snli evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_snli.commands.options import add_encoding, add_model
from bert_snli.console import quiet_libraries
from bert_snli.errors import BertSnliError
from bert_snli.folders import check_output_dir

SUMMARY = "measure a fine-tuned model"
HELP = """\
Measure a fine-tuned model on a split of SNLI: accuracy, macro F1, precision and recall of each label, confusion matrix.
Writes eval_results_SPLIT.json and confusion_matrix_SPLIT.png.

example:
  bert-snli evaluate runs/snli --dataset_name_or_path snli_1.0.zip --split test
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument("--dataset_name_or_path", default="stanfordnlp/snli", help="as for finetune")
    parser.add_argument("--split", choices=["train", "validation", "test"], default="test", help="which part")
    parser.add_argument(
        "--text_source", choices=["raw", "parse"], default="raw", help="sentences as typed, or the leaves of parses"
    )
    parser.add_argument("--output_dir", type=Path, help="where the report goes (default: the model folder)")
    add_encoding(parser)


def run(args: argparse.Namespace) -> None:
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
