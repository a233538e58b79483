"""A fine-tuned classifier measured on a set: figures for tools, and with `full_report` all that a reader asks next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from bert_snli.data.pair_encoding import NUM_SPECIAL_TOKENS, PairEncoder, encoder_of
from bert_snli.data.snli import EvaluationSet, load_evaluation_set
from bert_snli.evaluation.calibration import calibration, loss_of
from bert_snli.evaluation.comparison import mcnemar, swapped_labels
from bert_snli.evaluation.metrics import interval, label_metrics
from bert_snli.evaluation.plots import plot_confusion_matrix
from bert_snli.evaluation.predictions import Predictions, predict_set
from bert_snli.evaluation.slices import annotators, hardest, slices
from bert_snli.files import ONNX_FILE, WEIGHTS, atomic_folder, sha256_of_file
from bert_snli.inference import LogitsFunction, label_names, load_tokenizer
from bert_snli.modeling import D2LBertForSequenceClassification
from bert_snli.onnx import choose_backend, open_classifier


@dataclass(frozen=True)
class EvaluatedModel:
    """A model with its tokenizer, the order of its labels, and the way in which it reads pairs."""

    name: str
    backend: str
    weights_sha256: str | None  # of the file that was opened; not known of a model on the hub
    classifier: D2LBertForSequenceClassification | LogitsFunction
    tokenizer: PreTrainedTokenizerBase
    labels: list[str]
    encoder: PairEncoder
    batch_size: int

    def predict(self, evaluation_set: EvaluationSet) -> Predictions:
        """Its predictions to the pairs of a set."""
        return predict_set(
            self.classifier, self.tokenizer, evaluation_set, self.encoder, self.labels, batch_size=self.batch_size
        )


def load_evaluated_model(
    model_name_or_path: str,
    *,
    text_source: str = "raw",
    max_length: int | None = None,
    truncation: str | None = None,
    batch_size: int = 256,
    backend: str | None = None,
) -> EvaluatedModel:
    """A fine-tuned model, ready to be asked.

    Raises:
        BertSnliError: it is not there, or no classifier of natural language inference.
    """
    backend = choose_backend(model_name_or_path, backend)
    classifier, tokenizer = open_classifier(model_name_or_path, backend), load_tokenizer(model_name_or_path)
    labels = label_names(classifier.config, model_name_or_path)
    encoder = encoder_of(
        classifier.config, tokenizer, max_length=max_length, truncation=truncation, text_source=text_source
    )
    weights = Path(model_name_or_path) / (ONNX_FILE if backend == "onnx" else WEIGHTS)
    sha256 = sha256_of_file(weights) if weights.is_file() else None
    return EvaluatedModel(model_name_or_path, backend, sha256, classifier, tokenizer, labels, encoder, batch_size)


def evaluate_model(
    model_name_or_path: str,
    dataset_name_or_path: str,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    label_names: Mapping[str, str] | None = None,
    text_source: str = "raw",
    **reading,
) -> dict:
    """Evaluate a fine-tuned model on a data set.

    Args:
        model_name_or_path: a model folder or a Hub id.
        dataset_name_or_path: see `bert_snli.data.snli.load_evaluation_set`.
        split: `train`, `validation` or `test`, or another name that the set has; by default the test split.
        columns: which columns are `premise`, `hypothesis` and `label`, if their names are not known ones.
        label_names: the label that each value of the label column stands for, if the values are not known ones.
        text_source: `raw` or `parse`.
        reading: `max_length`, `truncation`, `batch_size` and `backend`, see `load_evaluated_model`.

    Returns:
        The content of `eval_results_SPLIT.json`: accuracy with its 95 % interval, macro F1, loss, precision and recall
        of each label, confusion matrix, calibration.

    Raises:
        BertSnliError: the model or the data are missing or do not fit.
    """
    evaluated_model = load_evaluated_model(model_name_or_path, text_source=text_source, **reading)
    evaluation_set = load_evaluation_set(
        dataset_name_or_path, split=split, text_source=text_source, columns=columns, label_names=label_names
    )
    return figures(evaluated_model, evaluated_model.predict(evaluation_set), dataset_name_or_path)


def figures(evaluated_model: EvaluatedModel, predictions: Predictions, dataset_name_or_path: str) -> dict:
    """What was measured, how, and the figures."""
    encoder, evaluation_set = evaluated_model.encoder, predictions.evaluation_set
    return {
        "model": evaluated_model.name,
        "weights_sha256": evaluated_model.weights_sha256,
        "backend": evaluated_model.backend,
        "dataset": dataset_name_or_path,
        "split": evaluation_set.name,
        "text_source": encoder.text_source,
        "max_length": encoder.budget + NUM_SPECIAL_TOKENS,
        "truncation": encoder.truncation,
        "pairs": len(predictions.encoded),
        "without_gold_label": evaluation_set.num_dropped,
        "loss": loss_of(predictions),
        **label_metrics(
            predictions.names(predictions.predictions_R),
            predictions.names(predictions.references_R),
            predictions.labels,
        ),
        "calibration": calibration(predictions),
        "swapped_labels": swapped_labels(predictions),
    }


def full_report(
    evaluated_model: EvaluatedModel, predictions: Predictions, results: dict, other: EvaluatedModel | None = None
) -> dict:
    """`results` (see `figures`), and where the model is right: kinds of pairs, blanked premises, annotators, hardest.

    With `other`, both models are compared on the same pairs.
    """
    evaluation_set = predictions.evaluation_set
    return {
        **results,
        "majority_share": max(predictions.references_R.tolist().count(n) for n in range(len(predictions.labels)))
        / len(predictions.references_R),
        "hypothesis_only": hypothesis_only(evaluated_model, evaluation_set),
        "slices": slices(predictions, evaluated_model.tokenizer.unk_token_id),
        "annotators": annotators(predictions),
        "comparison": {"other": other.name, **mcnemar(predictions, other.predict(evaluation_set))} if other else None,
        "hardest": hardest(predictions),
    }


def hypothesis_only(evaluated_model: EvaluatedModel, evaluation_set: EvaluationSet) -> dict:
    """Accuracy with every premise blanked: what hypotheses alone give away (Gururangan et al., 2018)."""
    pairs = evaluation_set.pairs
    blank = pairs.remove_columns("premise").add_column("premise", [""] * len(pairs))
    predictions = evaluated_model.predict(replace(evaluation_set, pairs=blank))
    right = int(predictions.right_R.sum())
    return {"accuracy": predictions.accuracy, "accuracy_interval": interval(right, len(pairs))}


def save_figures(results: dict, folder: Path) -> list[Path]:
    """Write the figures as JSON and the confusion matrix as PNG into `folder`; returns both paths.

    They are named by the split, and by the data too where the folder holds figures of a split of other data.

    Raises:
        BertSnliError: the folder cannot be written.
    """
    name = results["split"]
    if _are_of_other_data(folder / f"eval_results_{name}.json", results["dataset"]):
        data = Path(results["dataset"])
        name = f"{data.stem if data.stem != name else data.resolve().parent.name}_{name}"
    table, picture = f"eval_results_{name}.json", f"confusion_matrix_{name}.png"
    with atomic_folder(folder, overwrite=True) as temporary:
        (temporary / table).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        title = f"{results['split']}: accuracy {results['accuracy']:.3f}"
        plot_confusion_matrix(results["confusion_matrix"], title, temporary / picture)
    return [folder / table, folder / picture]


def _are_of_other_data(path: Path, dataset: str) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["dataset"] != dataset)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def format_figures(results: dict) -> str:
    """The figures as a table for the terminal."""
    low, high = results["accuracy_interval"]
    left_out = f"{results['without_gold_label']:,} without a gold label left out"
    lines = [
        f"{results['split']}: {results['pairs']:,} pairs, {left_out}",
        f"accuracy {results['accuracy']:.4f} ({low:.4f} to {high:.4f})   macro F1 {results['macro_f1']:.4f}   "
        f"loss {results['loss']:.4f}   calibration error {results['calibration']['expected_calibration_error']:.4f}",
        "",
        f"{'':15}{'precision':>10}{'recall':>10}{'F1':>10}{'pairs':>10}   predicted as",
    ]
    for name, row in results["per_label"].items():
        figures = "".join(f"{row[key]:>10.3f}" for key in ("precision", "recall", "f1"))
        predicted = ", ".join(f"{other} {count:,}" for other, count in results["confusion_matrix"][name].items())
        lines.append(f"{name:15}{figures}{row['support']:>10,}   {predicted}")
    return "\n".join(lines)
