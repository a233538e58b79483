"""A fine-tuned classifier measured on a split: `eval_results_{split}.json` and a confusion matrix beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bert_snli.data.pair_encoding import NUM_SPECIAL_TOKENS, encode_pairs, encoder_of
from bert_snli.data.snli import load_snli
from bert_snli.evaluation.metrics import nli_metrics
from bert_snli.evaluation.plots import plot_confusion_matrix
from bert_snli.inference import label_names, load_classifier, load_tokenizer, predict_logits


def evaluate_model(
    model_name_or_path: str,
    dataset_name_or_path: str,
    *,
    split: str = "test",
    text_source: str = "raw",
    max_length: int | None = None,
    truncation: str | None = None,
    batch_size: int = 256,
) -> dict:
    """Metrics of a fine-tuned model on a split, with the number of pairs and of rows without a gold label.

    Raises:
        BertSnliError: model or data are not there or do not fit.
    """
    model, tokenizer = load_classifier(model_name_or_path), load_tokenizer(model_name_or_path)
    labels = label_names(model.config, model_name_or_path)
    snli = load_snli(dataset_name_or_path, splits=[split], text_source=text_source, labels=labels)
    encoder = encoder_of(model.config, tokenizer, max_length=max_length, truncation=truncation, text_source=text_source)
    encoded = encode_pairs(snli.splits[split], encoder)
    logits = predict_logits(model, encoded, pad_token_id=tokenizer.pad_token_id, batch_size=batch_size)
    metrics = nli_metrics(logits, np.asarray(encoded["labels"]), labels)
    return {
        "model": model_name_or_path,
        "dataset": dataset_name_or_path,
        "split": split,
        "text_source": text_source,
        "max_length": encoder.budget + NUM_SPECIAL_TOKENS,
        "truncation": encoder.truncation,
        "pairs": len(encoded),
        "without_gold_label": snli.num_dropped[split],
        **metrics,
    }


def save_report(results: dict, folder: Path) -> list[Path]:
    """Write the metrics as JSON and the confusion matrix as PNG into `folder`; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"eval_results_{results['split']}.json"
    picture = folder / f"confusion_matrix_{results['split']}.png"
    table.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    plot_confusion_matrix(
        results["confusion_matrix"], f"{results['split']}: accuracy {results['accuracy']:.3f}", picture
    )
    return [table, picture]


def format_report(results: dict) -> str:
    """The metrics as a table for the terminal."""
    left_out = f"{results['without_gold_label']:,} without a gold label left out"
    lines = [
        f"{results['split']}: {results['pairs']:,} pairs, {left_out}",
        f"accuracy {results['accuracy']:.4f}   macro F1 {results['macro_f1']:.4f}   loss {results['loss']:.4f}",
        "",
        f"{'':15}{'precision':>10}{'recall':>10}{'F1':>10}{'pairs':>10}   predicted as",
    ]
    for name, row in results["per_label"].items():
        figures = "".join(f"{row[key]:>10.3f}" for key in ("precision", "recall", "f1"))
        predicted = ", ".join(f"{other} {count:,}" for other, count in results["confusion_matrix"][name].items())
        lines.append(f"{name:15}{figures}{row['support']:>10,}   {predicted}")
    return "\n".join(lines)
