"""`bert-snli evaluate`."""

import argparse
import logging
from pathlib import Path

import yaml

from bert_snli.choices import HUB_ID, TEXT_SOURCES
from bert_snli.cli.options import add_assignments, add_encoding, add_loading, add_model
from bert_snli.console import quiet_libraries
from bert_snli.errors import BertSnliError
from bert_snli.files import check_output_dir

logger = logging.getLogger(__name__)
SUMMARY = "Evaluate a fine-tuned model on a data set."
HELP = """\
Evaluate a fine-tuned model: accuracy with its 95 % interval, macro F1, precision and recall of each label, confusion
matrix and calibration. Writes eval_results_SPLIT.json and confusion_matrix_SPLIT.png. --report adds a report (Markdown,
HTML, JSON and images): accuracy by pair type, accuracy with empty premises, and agreement with the annotators.

Data sets: SNLI from the Hub, a zip archive or a folder; or one published file of MultiNLI, HANS, e-SNLI, ChaosNLI,
Breaking-NLI or counterfactually-augmented NLI. For other files, give --columns and --labels. If a data set has the
labels entailment and non-entailment, neutral and contradiction count as one label. One file is evaluated as a whole;
--split validation evaluates the tenth of it that bert-snli finetune does not train on.

examples:
  bert-snli evaluate runs/snli --dataset_name_or_path snli_1.0.zip
  bert-snli evaluate runs/new --compare runs/old --report new_and_old
  bert-snli evaluate runs/snli --dataset_name_or_path my.csv \\
      --columns premise=text label=class --labels 0=entailment 1=contradiction
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add_model(parser)
    add("--dataset_name_or_path", default=HUB_ID, help="Data set, see above.")
    add("--dataset_config_name", metavar="NAME", help="Configuration of a data set on the Hub.")
    add("--split", metavar="NAME", help="train, validation, test, or another split of the data set. (default: test)")
    add("--text_source", choices=TEXT_SOURCES, default="raw", help="Text of SNLI: raw, or parse tokens as in d2l.")
    add_assignments(parser, "--columns", "ROLE=NAME", "Names of the columns premise, hypothesis and label.")
    add_assignments(parser, "--labels", "VALUE=LABEL", "The label that each value in the label column means.")
    add("--output_dir", type=Path, help="Folder for the results. (default: the model folder)")
    add("--report", type=Path, metavar="DIR", help="Folder for the report. A report on the same weights is replaced.")
    add("--compare", metavar="OTHER", help="Another fine-tuned model; the report compares both by McNemar's test.")
    add_encoding(parser)
    add_loading(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.compare and not args.report:
        raise BertSnliError(f"--compare {args.compare}: needs a report; add --report DIR for the comparison")
    if args.output_dir is None and not Path(args.model).is_dir():
        remedy = "give the data set as --dataset_name_or_path, or add --output_dir for a model on the Hub"
        raise BertSnliError(f"{args.model}: is not a model folder; {remedy}")
    check_output_dir(args.output_dir or Path(args.model), overwrite=True)
    if args.report:
        check_output_dir(args.report, overwrite=True)

    from bert_snli.data.snli import load_evaluation_set
    from bert_snli.evaluation import report
    from bert_snli.files import RECIPE_FILE, read_file

    quiet_libraries()
    options = {name: getattr(args, name) for name in ("text_source", "max_length", "truncation", "batch_size")}
    loading = {name: getattr(args, name) for name in ("backend", "revision", "dtype")}
    model = report.EvaluatedModel(args.model, **loading, **options)
    if args.report:
        report.check_report_dir(args.report, model.name, model.weights_sha256)
    other = report.EvaluatedModel(args.compare, **options) if args.compare else None
    evaluation_set = load_evaluation_set(
        args.dataset_name_or_path,
        dataset_config_name=args.dataset_config_name,
        split=args.split,
        text_source=args.text_source,
        columns=dict(args.columns),
        label_mapping=dict(args.labels),
        labels=model.labels,
    )
    recipe = read_file(Path(args.model) / RECIPE_FILE, yaml.safe_load) or {}
    data, trained_on = Path(args.dataset_name_or_path), Path(recipe.get("dataset_name_or_path", ""))
    if args.split is None and data.is_file() and data.resolve() == trained_on.resolve():
        logger.warning("%s: the model was trained on nine tenths of it; --split validation evaluates the rest", data)
    predictions = model.predict(evaluation_set)
    results = report.compute_results(model, predictions, args.dataset_name_or_path)
    print(report.format_results(results), "", sep="\n")
    files = report.save_results(results, args.output_dir or Path(args.model))
    if args.report:
        full_report = report.compute_report(model, predictions, results, other)
        files += report.write_report(full_report, args.report)
        if compared := full_report["comparison"]:
            accuracies = f"accuracy {results['accuracy']:.4f} and {compared['other_accuracy']:.4f}"
            p_value = f"McNemar's exact test p = {compared['p_value']:.2g}"
            print(f"compared with {compared['other']}: {accuracies}; {p_value}\n")
    print(*files, sep="\n")
