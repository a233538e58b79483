"""Evaluate a fine-tuned classifier on a data set, and write the results and the full report."""

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from bert_snli.data.pair_encoding import NUM_SPECIAL_TOKENS, encode_pairs, make_encoder
from bert_snli.data.snli import EvaluationSet, load_evaluation_set
from bert_snli.errors import BertSnliError
from bert_snli.evaluation import analysis
from bert_snli.evaluation.analysis import Predictions
from bert_snli.evaluation.metrics import label_metrics, measure_accuracy
from bert_snli.evaluation.plots import plot_confusion_matrix, plot_reliability, plot_slices
from bert_snli.files import ONNX_FILE, WEIGHTS, atomic_folder, read_json, sha256_of_file
from bert_snli.inference import OnnxClassifier, classifier_labels, load_tokenizer, open_classifier, predict_logits
from bert_snli.modeling.labels import D2L_LABELS
from bert_snli.rendering import render


class EvaluatedModel:
    """A fine-tuned model to evaluate.

    `revision` and `dtype` are arguments of `from_pretrained`. `encoding` are the options of `make_encoder`:
    `text_source`, `max_length` and `truncation`.
    """

    def __init__(
        self,
        model_name_or_path: str,
        *,
        backend: str | None = None,
        revision: str | None = None,
        dtype: str | None = None,
        batch_size: int = 256,
        **encoding,
    ):
        self.name = model_name_or_path
        self.classifier = open_classifier(model_name_or_path, backend, revision=revision, dtype=dtype)
        self.backend = "onnx" if isinstance(self.classifier, OnnxClassifier) else "torch"
        is_onnx = self.backend == "onnx"
        self.dtype = None if is_onnx else dtype or str(self.classifier.config.dtype).removeprefix("torch.")
        self.revision = revision
        self.logit_labels = classifier_labels(self.classifier.config)
        is_nli = set(self.logit_labels) == set(D2L_LABELS)
        self.labels = list(D2L_LABELS) if is_nli else self.logit_labels  # the order in results
        self.tokenizer = load_tokenizer(model_name_or_path, revision)
        self.encoder = make_encoder(self.classifier.config, self.tokenizer, **encoding)
        self.batch_size = batch_size
        weights = Path(model_name_or_path) / (ONNX_FILE if self.backend == "onnx" else WEIGHTS)
        self.weights_sha256 = sha256_of_file(weights) if weights.is_file() else None  # None for a model on the Hub

    def predict(self, evaluation_set: EvaluationSet) -> Predictions:
        encoded = encode_pairs(evaluation_set.pairs, self.encoder)
        options = {"pad_token_id": self.tokenizer.pad_token_id, "batch_size": self.batch_size}
        logits = predict_logits(self.classifier, encoded, **options)
        return Predictions(
            evaluation_set, encoded, logits[:, [self.logit_labels.index(label) for label in self.labels]]
        )


def evaluate_model(
    model_name_or_path: str,
    dataset_name_or_path: str,
    *,
    dataset_config_name: str | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    label_mapping: Mapping[str, str] | None = None,
    text_source: str = "raw",
    **model_options,
) -> dict:
    """Evaluate a fine-tuned model on a data set.

    Args:
        model_name_or_path: a model folder or a Hub id.
        dataset_name_or_path, dataset_config_name, columns, label_mapping, text_source: see `load_snli`.
        split: `train`, `validation` or `test`, or another name that the set has. Defaults to the test split, and for
            one file to all its rows.
        model_options: `max_length`, `truncation`, `batch_size`, `backend`, `revision` and `dtype` (`float32` or
            `bfloat16`).

    Returns:
        The content of `eval_results_SPLIT.json`: accuracy with its 95 % interval, macro F1, loss, precision and recall
        of each label, confusion matrix, calibration.

    Raises:
        BertSnliError: the model or the data are missing or do not fit.

    Example:
        >>> results = evaluate_model("quickstart/finetuned", "quickstart/mini_snli", split="test")
        >>> results["pairs"], results["accuracy"] > 0.9
        (594, True)
        >>> sorted(results["confusion_matrix"])
        ['contradiction', 'entailment', 'neutral']
    """
    model = EvaluatedModel(model_name_or_path, text_source=text_source, **model_options)
    evaluation_set = load_evaluation_set(
        dataset_name_or_path,
        dataset_config_name=dataset_config_name,
        split=split,
        text_source=text_source,
        columns=columns,
        label_mapping=label_mapping,
        labels=model.labels,
    )
    return compute_results(model, model.predict(evaluation_set), dataset_name_or_path)


def compute_results(model: EvaluatedModel, predictions: Predictions, dataset_name_or_path: str) -> dict:
    """Return the content of `eval_results_SPLIT.json`: the model, the data, the settings and the metrics."""
    names = np.asarray(predictions.labels)
    predicted, gold = names[predictions.predictions_R].tolist(), names[predictions.references_R].tolist()
    return {
        "model": model.name,
        "revision": model.revision,
        "weights_sha256": model.weights_sha256,
        "backend": model.backend,
        "dtype": model.dtype,
        "dataset": dataset_name_or_path,
        "split": predictions.evaluation_set.name,
        "text_source": model.encoder.text_source,
        "max_length": model.encoder.budget + NUM_SPECIAL_TOKENS,
        "truncation": model.encoder.truncation,
        "without_gold_label": predictions.evaluation_set.num_dropped,
        "loss": predictions.loss(),
        **label_metrics(predicted, gold, predictions.labels),
        "calibration": analysis.calibration(predictions),
    }


def save_results(results: dict, folder: Path) -> list[Path]:
    """Write the results as JSON and the confusion matrix as PNG into `folder`; return both paths.

    The file names contain the split. They also contain the data set if `folder` holds results of another data set.
    """
    name = results["split"]
    try:
        earlier = read_json(folder / f"eval_results_{name}.json")
    except BertSnliError:  # a damaged file is replaced
        earlier = {}
    if earlier.get("dataset", results["dataset"]) != results["dataset"]:
        data = Path(results["dataset"])
        name = f"{data.stem if data.stem != name else data.resolve().parent.name}_{name}"
    table, picture = f"eval_results_{name}.json", f"confusion_matrix_{name}.png"
    with atomic_folder(folder, overwrite=True) as temporary:
        _write_results(results, temporary / table, temporary / picture)
    return [folder / table, folder / picture]


def _write_results(results: dict, table: Path, picture: Path) -> None:
    table.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    title = f"{results['split']}: accuracy {results['accuracy']:.3f}"
    plot_confusion_matrix(results["confusion_matrix"], title, picture)


def format_results(results: dict) -> str:
    """Return the results as a table for the terminal."""
    low, high = results["accuracy_interval"]
    lines = [
        f"{results['split']}: {results['pairs']:,} pairs, "
        f"{results['without_gold_label']:,} without a gold label left out",
        f"accuracy {results['accuracy']:.4f} ({low:.4f} to {high:.4f})   macro F1 {results['macro_f1']:.4f}   "
        f"loss {results['loss']:.4f}   calibration error {results['calibration']['expected_calibration_error']:.4f}",
        "",
        f"{'':15}{'precision':>10}{'recall':>10}{'F1':>10}{'pairs':>10}   predicted as",
    ]
    for name, row in results["per_label"].items():
        metrics = "".join(f"{row[key]:>10.3f}" for key in ("precision", "recall", "f1"))
        predicted = ", ".join(f"{other} {count:,}" for other, count in results["confusion_matrix"][name].items())
        lines.append(f"{name:15}{metrics}{row['support']:>10,}   {predicted}")
    return "\n".join(lines)


def compute_report(
    model: EvaluatedModel, predictions: Predictions, results: dict, other: EvaluatedModel | None = None
) -> dict:
    """Return the content of `report.json`: `results`, an analysis of errors, and a comparison with `other`."""
    evaluation_set = predictions.evaluation_set
    pairs = evaluation_set.pairs
    # The accuracy without premises shows how much the hypotheses alone reveal (Gururangan et al., 2018).
    blanked = pairs.remove_columns("premise").add_column("premise", [""] * len(pairs))
    comparison = None
    if other:
        if other.labels != model.labels:
            what = f"has the labels {', '.join(other.labels)}, not {', '.join(model.labels)}"
            raise BertSnliError(f"compare {other.name}: {what}; give a model with the same labels")
        comparison = {"other": other.name, **analysis.mcnemar_test(predictions, other.predict(evaluation_set))}
    return {
        **results,
        "majority_share": float(np.bincount(predictions.references_R).max() / len(predictions.references_R)),
        "hypothesis_only": measure_accuracy(model.predict(replace(evaluation_set, pairs=blanked)).is_correct_R),
        "slices": analysis.accuracy_by_pair_type(predictions, model.tokenizer.unk_token_id),
        "annotators": analysis.annotator_agreement(predictions),
        "comparison": comparison,
        "hardest": analysis.hardest_pairs(predictions),
    }


def check_report_dir(folder: Path, model: str, weights_sha256: str | None) -> None:
    """Raise `BertSnliError` if `folder` has a report on other weights. Hub models are compared by name."""
    old = read_json(folder / "report.json")
    is_same = old.get("weights_sha256") == weights_sha256 and (weights_sha256 or old.get("model") == model)
    if (folder / "report.json").exists() and not is_same:
        content = f"a report on other weights ({old.get('model', 'unknown model')})"
        raise BertSnliError(f"report {folder}: holds {content}; give another folder, or delete that report")


def write_report(report: dict, folder: Path) -> list[Path]:
    """Write the files of a report from `compute_report`; return the paths of `report.md`, `.html` and `.json`."""
    with atomic_folder(folder, overwrite=True) as temporary:
        _write_results(report, temporary / "report.json", temporary / "confusion_matrix.png")
        plot_reliability(report["calibration"], temporary / "reliability.png")
        plot_slices(report["slices"], report["accuracy"], temporary / "slices.png")
        images = {path.name: base64.b64encode(path.read_bytes()).decode("ascii") for path in temporary.glob("*.png")}
        for name in ("report.md", "report.html"):
            text = render(f"evaluation_{name}", report=report, base64_images=images)
            (temporary / name).write_text(text, encoding="utf-8")
    return [folder / name for name in ("report.md", "report.html", "report.json")]
