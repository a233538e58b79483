"""`bert-snli evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_snli.cli.options import add_backend, add_encoding, add_model
from bert_snli.console import quiet_libraries
from bert_snli.errors import BertSnliError
from bert_snli.files import check_output_dir

SUMMARY = "measure a fine-tuned model"
HELP = """\
Measure a fine-tuned model: accuracy with its 95 % interval, macro F1, precision and recall of each label, confusion
matrix, calibration. Writes eval_results_SPLIT.json and confusion_matrix_SPLIT.png. With --report also a report
(Markdown, HTML, JSON and images): accuracy by pair type, with blanked premises, and compared with the annotators.

Data sets: SNLI from the hub, a zip or a folder, and any one file of MultiNLI, HANS, e-SNLI, ChaosNLI, Breaking-NLI or
counterfactually-augmented NLI as it was published; other files with --columns and --labels. Data sets with the labels
entailment and non-entailment are scored with two labels: neutral and contradiction count as one.

examples:
  bert-snli evaluate runs/snli --dataset_name_or_path snli_1.0.zip --split test --report runs/snli/report
  bert-snli evaluate runs/snli --dataset_name_or_path multinli_1.0_dev_matched.jsonl
  bert-snli evaluate runs/snli --dataset_name_or_path my.csv --columns premise=text label=class --labels 0=entailment \\
      1=neutral 2=contradiction
  bert-snli evaluate runs/new --compare runs/old --report new_and_old
"""
COLUMNS = ("premise", "hypothesis", "label")
LABELS = ("entailment", "contradiction", "neutral", "non-entailment", "-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_model(parser)
    parser.add_argument("--dataset_name_or_path", default="stanfordnlp/snli", help="as for finetune, or one data file")
    parser.add_argument("--split", help="train, validation, test, or the data set's name for it (default: test)")
    parser.add_argument(
        "--text_source", choices=["raw", "parse"], default="raw", help="raw text, or the leaves of parses"
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        type=column,
        default=[],
        metavar="ROLE=NAME",
        help="names of the columns",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        type=label,
        default=[],
        metavar="VALUE=LABEL",
        help="the label that a value stands for",
    )
    parser.add_argument("--output_dir", type=Path, help="folder for the results (default: the model folder)")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="folder for the full report; replaces a report on the same weights"
    )
    parser.add_argument(
        "--compare", metavar="OTHER", help="another fine-tuned model; McNemar's test is added to the report"
    )
    add_encoding(parser)
    add_backend(parser)


def column(text: str) -> tuple[str, str]:
    """For `type=`: a column of the data set."""
    role, _, name = text.partition("=")
    if role not in COLUMNS or not name:
        raise argparse.ArgumentTypeError(f"{text}: write {'|'.join(COLUMNS)}=NAME")
    return role, name


def label(text: str) -> tuple[str, str]:
    """For `type=`: a value of the label column, and the label that it stands for."""
    value, equals, name = text.rpartition("=")
    if name not in LABELS or not equals:
        raise argparse.ArgumentTypeError(f"{text}: write VALUE={'|'.join(LABELS)}")
    return value, name


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.compare and not args.report:
        raise BertSnliError(f"--compare {args.compare}: add --report DIR, where the comparison is written")
    if args.output_dir is None and not Path(args.model).is_dir():
        raise BertSnliError(f"{args.model}: not a folder; name a model folder, or add --output_dir for a hub model")
    output_dir = args.output_dir or Path(args.model)
    for folder in [output_dir] + [args.report] * bool(args.report):
        check_output_dir(folder, overwrite=True)

    from bert_snli.data.snli import load_evaluation_set
    from bert_snli.evaluation.predictions import EvaluatedModel
    from bert_snli.evaluation.report import (
        check_report_dir,
        compute_report,
        compute_results,
        format_results,
        save_results,
        write_report,
    )

    quiet_libraries()
    options = {name: getattr(args, name) for name in ("text_source", "max_length", "truncation", "batch_size")}
    model = EvaluatedModel(args.model, backend=args.backend, **options)
    if args.report:
        check_report_dir(args.report, model.name, model.weights_sha256)
    other = EvaluatedModel(args.compare, **options) if args.compare else None
    evaluation_set = load_evaluation_set(
        args.dataset_name_or_path,
        split=args.split,
        text_source=args.text_source,
        columns=dict(args.columns),
        label_names=dict(args.labels),
    )
    predictions = model.predict(evaluation_set)
    results = compute_results(model, predictions, args.dataset_name_or_path)
    print(format_results(results), "", sep="\n")
    files = save_results(results, output_dir)
    if args.report:
        report = compute_report(model, predictions, results, other)
        files += write_report(report, args.report)
        if compared := report["comparison"]:
            print(
                f"compared with {compared['other']}: accuracy {report['accuracy']:.4f} and "
                f"{compared['other_accuracy']:.4f}; only this right {compared['only_this_right']:,}, only the other "
                f"{compared['only_other_right']:,}; McNemar's exact test p = {compared['p_value']:.2g}\n"
            )
    print(*files, sep="\n")
