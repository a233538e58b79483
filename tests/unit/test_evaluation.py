"""Evaluation: metrics, predictions, label order, and the files that it writes."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from bert_snli.cli.main import build_parser
from bert_snli.data.pair_encoding import PairEncoder
from bert_snli.errors import BertSnliError
from bert_snli.evaluation.metrics import ClassificationMetrics, nli_metrics
from bert_snli.evaluation.report import check_report_dir, evaluate_model, format_results, save_results
from bert_snli.finetune import finetune_model
from bert_snli.inference import (
    classifier_labels,
    load_classifier,
    load_config,
    load_tokenizer,
    ordered_labels,
    predict_logits,
)
from bert_snli.modeling import D2LBertConfig
from bert_snli.modeling.labels import D2L_LABELS
from bert_snli.modeling.pair_truncation import TRUNCATIONS
from bert_snli.prediction import Predictor
from bert_snli.training.arguments import FinetuneArguments
from tests.support.classifiers import random_pairs

GOLD = ["entailment"] * 4 + ["contradiction"] * 4 + ["neutral"] * 2
PREDICTED = ["entailment"] * 3 + ["neutral"] + ["contradiction"] * 2 + ["entailment"] * 2 + ["neutral"] * 2


def test_metrics_equal_values_computed_by_hand():
    results = ClassificationMetrics(keep_in_memory=True).compute(predictions=PREDICTED, references=GOLD)
    assert results["accuracy"] == pytest.approx(0.7)
    assert results["pairs"] == 10
    assert results["per_label"]["entailment"] == pytest.approx(
        {"precision": 3 / 5, "recall": 3 / 4, "f1": 2 / 3, "support": 4}
    )
    assert results["per_label"]["contradiction"] == pytest.approx(
        {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 4}
    )
    assert results["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 4 / 5) / 3)
    assert results["confusion_matrix"]["contradiction"] == {"entailment": 2, "contradiction": 2, "neutral": 0}


def test_metrics_of_logits_use_the_given_label_order():
    names = ["neutral", "entailment", "contradiction"]
    logits = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    metrics = nli_metrics(logits, np.array([0, 1]), names)
    assert metrics["accuracy"] == 0.5
    assert metrics["confusion_matrix"]["entailment"]["contradiction"] == 1
    losses = [-math.log(math.e**2 / (math.e**2 + 2)), -math.log(1 / (math.e**3 + 2))]
    assert metrics["loss"] == pytest.approx(sum(losses) / 2)


def test_non_finite_logits_are_refused():
    with pytest.raises(
        BertSnliError, match="logits: some are NaN or infinite; train the model again with a lower learning rate"
    ):
        nli_metrics(np.array([[np.nan, 0.0, 0.0]]), np.array([0]), D2L_LABELS)


def test_predictions_are_in_the_order_of_the_pairs_and_sorted_by_score(model_folder: Path):
    model, tokenizer = load_classifier(str(model_folder)), load_tokenizer(str(model_folder))
    pairs = random_pairs(30)
    together = Predictor(model, tokenizer, batch_size=7)(pairs)
    for pair, scores in zip(pairs, together, strict=True):
        (alone,) = Predictor(model, tokenizer)([pair])
        assert scores == pytest.approx(alone, abs=1e-5)
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert sum(scores.values()) == pytest.approx(1)
    assert len({next(iter(scores)) for scores in together}) > 1


def test_logits_equal_a_padded_forward_pass_of_the_model(model_folder: Path):
    model, tokenizer = load_classifier(str(model_folder)), load_tokenizer(str(model_folder))
    premises, hypotheses = map(list, zip(*random_pairs(20), strict=True))
    inputs = tokenizer(premises, hypotheses, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
    encoded = Dataset(PairEncoder(tokenizer, 40).encode(premises, hypotheses))
    found = predict_logits(model, encoded, pad_token_id=tokenizer.pad_token_id, batch_size=6)
    # Large weights amplify rounding errors; tests/unit/test_fast.py compares in float64.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.fixture
def truncating_model(model_folder: Path) -> Path:
    """A model folder that holds the length and the truncation that fine-tuning used."""
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(
        json.dumps({**config, "max_pair_length": 9, "pair_truncation": "ratio"}), encoding="utf-8"
    )
    return model_folder


def test_predictions_use_the_length_and_truncation_of_the_config(truncating_model: Path):
    model, tokenizer = load_classifier(str(truncating_model)), load_tokenizer(str(truncating_model))
    pairs = random_pairs(30)
    predictions = Predictor(model, tokenizer)(pairs)
    assert predictions == Predictor(model, tokenizer, max_length=9, truncation="ratio")(pairs)
    assert predictions != Predictor(model, tokenizer, truncation="longest")(pairs)
    assert predictions != Predictor(model, tokenizer, max_length=12)(pairs)


def test_evaluation_uses_the_length_and_truncation_of_the_config(truncating_model: Path, corpus: Path):
    default, explicit, longest, longer = (
        evaluate_model(str(truncating_model), str(corpus), split="test", **options)["loss"]
        for options in ({}, {"max_length": 9, "truncation": "ratio"}, {"truncation": "longest"}, {"max_length": 12})
    )
    assert default == explicit
    assert default != longest and default != longer


def test_finetuning_saves_its_length_and_truncation_in_the_config(model_folder: Path, corpus: Path, tmp_path: Path):
    finetune_model(
        FinetuneArguments(
            model_name_or_path=str(model_folder),
            dataset_name_or_path=str(corpus),
            output_dir=str(tmp_path / "run"),
            max_length=9,
            truncation="ratio",
            max_steps=1,
            max_train_samples=8,
            max_eval_samples=8,
            train_batch_size=8,
        )
    )
    config = load_config(str(tmp_path / "run"))
    assert (config.max_pair_length, config.pair_truncation) == (9, "ratio")


def test_max_length_of_zero_is_refused(model_folder: Path):
    model, tokenizer = load_classifier(str(model_folder)), load_tokenizer(str(model_folder))
    with pytest.raises(BertSnliError, match="^max_length 0"):
        Predictor(model, tokenizer, max_length=0)(random_pairs(1))


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_each_truncation_is_an_option_of_the_commands(truncation: str, command: str):
    assert build_parser().parse_args([command, "model", "--truncation", truncation]).truncation == truncation


def test_results_are_saved_as_json_and_as_an_image(model_folder: Path, corpus: Path, tmp_path: Path):
    results = evaluate_model(str(model_folder), str(corpus), split="test")
    table, image = save_results(results, tmp_path / "report")
    assert json.loads(table.read_text()) == results
    assert image.read_bytes().startswith(b"\x89PNG")


def test_results_count_the_pairs_with_and_without_a_gold_label(model_folder: Path, corpus: Path):
    golds = [json.loads(line)["gold_label"] for line in (corpus / "snli_1.0_test.jsonl").read_text().splitlines()]
    results = evaluate_model(str(model_folder), str(corpus), split="test")
    assert results["without_gold_label"] == golds.count("-") > 0
    assert results["pairs"] == len(golds) - golds.count("-")
    assert {label: row["support"] for label, row in results["per_label"].items()} == {
        label: golds.count(label) for label in D2L_LABELS
    }


def test_printed_results_show_the_accuracy(model_folder: Path, corpus: Path):
    results = evaluate_model(str(model_folder), str(corpus), split="test")
    assert f"accuracy {results['accuracy']:.4f}" in format_results(results)


def test_results_on_other_data_are_not_overwritten(tmp_path: Path):
    matrix = {label: dict.fromkeys(D2L_LABELS, 1) for label in D2L_LABELS}
    results = {"split": "test", "dataset": "snli_1.0.zip", "accuracy": 1 / 3, "confusion_matrix": matrix}
    other = {**results, "dataset": "elsewhere/test.tsv"}
    assert [path.name for path in save_results(results, tmp_path)][0] == "eval_results_test.json"
    assert [path.name for path in save_results(other, tmp_path)][0] == "eval_results_elsewhere_test.json"
    assert [path.name for path in save_results(results, tmp_path)][0] == "eval_results_test.json"
    assert json.loads((tmp_path / "eval_results_test.json").read_text()) == results


@pytest.mark.parametrize(
    ("saved", "new", "is_refused"),
    [
        ('{"model": "a", "weights_sha256": "1"}', ("b", "1"), False),
        ('{"model": "a", "weights_sha256": "1"}', ("a", "2"), True),
        ('{"model": "a", "weights_sha256": null}', ("a", None), False),
        ('{"model": "a", "weights_sha256": null}', ("b", None), True),
        ('{"accuracy": 1}', ("a", "1"), True),
        ("[", ("a", None), True),
    ],
    ids=["moved folder", "trained again", "same Hub model", "other Hub model", "no weights hash", "not JSON"],
)
def test_report_is_replaced_only_by_a_report_on_the_same_weights(
    saved: str, new: tuple, is_refused: bool, tmp_path: Path
):
    (tmp_path / "report.json").write_text(saved)
    with pytest.raises(BertSnliError, match="holds a report|cannot be read") if is_refused else nullcontext():
        check_report_dir(tmp_path, *new)


def test_permuting_the_label_ids_of_a_model_keeps_its_metrics(model_folder: Path, corpus: Path, tmp_path: Path):
    model = load_classifier(str(model_folder))
    order = [2, 0, 1]
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter[order].clone())
    model.config.id2label = {new: D2L_LABELS[old] for new, old in enumerate(order)}
    model.config.label2id = {name: number for number, name in model.config.id2label.items()}
    model.save_pretrained(tmp_path / "permuted")
    load_tokenizer(str(model_folder)).save_pretrained(tmp_path / "permuted")
    before = evaluate_model(str(model_folder), str(corpus))
    after = evaluate_model(str(tmp_path / "permuted"), str(corpus))
    for name in ("accuracy", "macro_f1", "per_label", "confusion_matrix"):
        assert after[name] == before[name]


def test_labels_are_in_the_order_of_the_logits_whatever_the_order_in_the_config(model_folder: Path):
    before = ordered_labels(load_config(str(model_folder)))
    config = json.loads((model_folder / "config.json").read_text())
    config["id2label"] = {number: config["id2label"][number] for number in ("2", "0", "1")}
    (model_folder / "config.json").write_text(json.dumps(config))
    assert ordered_labels(load_config(str(model_folder))) == before == list(D2L_LABELS)


def test_labels_of_another_task_are_in_the_order_of_the_logits_and_in_lower_case():
    config = D2LBertConfig(id2label={1: "Negative", 0: "Positive"}, label2id={"Positive": 0, "Negative": 1})
    assert classifier_labels(config) == ["positive", "negative"]
