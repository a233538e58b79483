"""`bert-snli evaluate`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bert_snli.cli.options import add_backend, add_encoding, add_model
from bert_snli.console import quiet_libraries
from bert_snli.errors import BertSnliError
from bert_snli.files import check_output_dir

SUMMARY = "measure a fine-tuned model"
HELP = """\
Measure a fine-tuned model: accuracy with its 95 % interval, macro F1, precision and recall of each label, confusion
matrix, calibration. Writes eval_results_SPLIT.json and confusion_matrix_SPLIT.png. With --report also a page
(Markdown, HTML, JSON and pictures) on what kinds of pairs it gets right, with premises blanked, against the annotators.

Sets: SNLI from the hub, a zip or a folder, and any one file of MultiNLI, HANS, e-SNLI, ChaosNLI, Breaking-NLI or
counterfactually-augmented NLI as it was published; other files with --columns and --labels. Sets that ask only whether
the hypothesis follows are scored so: neutral and contradiction count as one.

examples:
  bert-snli evaluate runs/snli --dataset_name_or_path snli_1.0.zip --split test --report runs/snli/report
  bert-snli evaluate runs/snli --dataset_name_or_path multinli_1.0_dev_matched.jsonl
  bert-snli evaluate runs/snli --dataset_name_or_path my.csv --columns premise=text label=class --labels 0=entailment \\
      1=neutral 2=contradiction
  bert-snli evaluate runs/new --compare runs/old --report new_against_old
"""
LABELS = ("entailment", "contradiction", "neutral", "non-entailment", "-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument("--dataset_name_or_path", default="stanfordnlp/snli", help="as for finetune, or one data file")
    parser.add_argument("--split", help="which part: train, validation, test, or as the set names it (default: test)")
    parser.add_argument(
        "--text_source", choices=["raw", "parse"], default="raw", help="sentences as typed, or the leaves of parses"
    )
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="ROLE=NAME", help="where premise, hypothesis and label stand"
    )
    parser.add_argument(
        "--labels", nargs="+", default=[], metavar="FOUND=LABEL", help="what a label of the set is called here"
    )
    parser.add_argument("--output_dir", type=Path, help="where the figures go (default: the model folder)")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write the full report into this folder; it replaces a report on the same weights only",
    )
    parser.add_argument(
        "--compare", metavar="OTHER", help="another fine-tuned model; McNemar's test goes into --report"
    )
    add_encoding(parser)
    add_backend(parser)


def run(args: argparse.Namespace) -> None:
    """`bert-snli evaluate`."""
    columns = _mapping("columns", args.columns, left=("premise", "hypothesis", "label"))
    label_names = _mapping("labels", args.labels, right=LABELS)
    if args.compare and not args.report:
        raise BertSnliError(f"--compare {args.compare}: add --report DIR, where the comparison goes")
    if args.output_dir is None and not Path(args.model).is_dir():
        raise BertSnliError(
            f"{args.model}: not a folder here; give a fine-tuned model's, or add --output_dir for one on the hub"
        )
    output_dir = args.output_dir or Path(args.model)
    for folder in (output_dir, *([args.report] if args.report else [])):
        check_output_dir(folder, overwrite=True)

    from bert_snli.data.snli import load_evaluation_set
    from bert_snli.evaluation.comparison import describe_swapped_labels
    from bert_snli.evaluation.pages import check_report_dir, write_report
    from bert_snli.evaluation.report import figures, format_figures, full_report, load_evaluated_model, save_figures

    quiet_libraries()
    reading = {name: getattr(args, name) for name in ("text_source", "max_length", "truncation", "batch_size")}
    evaluated_model = load_evaluated_model(args.model, backend=args.backend, **reading)
    if args.report:
        check_report_dir(args.report, evaluated_model.name, evaluated_model.weights_sha256)
    other = load_evaluated_model(args.compare, **reading) if args.compare else None
    evaluation_set = load_evaluation_set(
        args.dataset_name_or_path,
        split=args.split,
        text_source=args.text_source,
        columns=columns,
        label_names=label_names,
    )
    predictions = evaluated_model.predict(evaluation_set)
    results = figures(evaluated_model, predictions, args.dataset_name_or_path)
    print(format_figures(results), "", sep="\n")
    if results["swapped_labels"]:
        sys.stderr.write(f"WARNING: {describe_swapped_labels(results['swapped_labels'])}\n")
    files = save_figures(results, output_dir)
    if args.report:
        report = full_report(evaluated_model, predictions, results, other)
        files += write_report(report, args.report)
        if report["comparison"]:
            print(_compared(report), "", sep="\n")
    print(*files, sep="\n")


def _mapping(
    option: str, entries: list[str], left: tuple[str, ...] = (), right: tuple[str, ...] = ()
) -> dict[str, str]:
    """`KEY=VALUE` entries; keys must be of `left`, values of `right`, where these are given."""
    mapping = {}
    for entry in entries:
        key, sign, value = entry.partition("=") if left else entry.rpartition("=")
        for found, allowed in ((key, left), (value, right)):
            if not sign or (allowed and found not in allowed):
                what = f"{'|'.join(left) or 'FOUND'}={'|'.join(right) or 'NAME'}"
                raise BertSnliError(f"--{option} {entry}: write {what}")
        mapping[key] = value
    return mapping


def _compared(report: dict) -> str:
    compared = report["comparison"]
    return (
        f"against {compared['other']}: {report['accuracy']:.4f} and {compared['other_accuracy']:.4f}; only this right "
        f"{compared['only_this_right']:,}, only the other {compared['only_other_right']:,}; "
        f"McNemar's exact test p = {compared['p_value']:.2g}"
    )
