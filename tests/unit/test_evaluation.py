"""Metrics against figures worked out by hand, predictions in order, and the report's files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from datasets import Dataset

from bert_snli.cli import build_parser
from bert_snli.data.pair_encoding import PairEncoder
from bert_snli.errors import BertSnliError
from bert_snli.evaluation.metrics import Accuracy, ConfusionMatrix, MacroF1, PerLabel, nli_metrics
from bert_snli.evaluation.report import evaluate_model, format_figures, save_figures
from bert_snli.finetune import finetune
from bert_snli.inference import (
    label_names,
    load_classifier,
    load_config,
    load_tokenizer,
    ordered_labels,
    predict_logits,
)
from bert_snli.labels import BOOK_LABELS
from bert_snli.modeling import D2LBertConfig
from bert_snli.modeling.pair_truncation import TRUNCATIONS
from bert_snli.prediction import predict_pairs
from bert_snli.training.recipe import FinetuneRecipe
from tests.support.classifiers import random_pairs

GOLD = ["entailment"] * 4 + ["contradiction"] * 4 + ["neutral"] * 2
PREDICTED = ["entailment"] * 3 + ["neutral"] + ["contradiction"] * 2 + ["entailment"] * 2 + ["neutral"] * 2


def test_the_metrics_are_those_worked_out_by_hand():
    results = evaluate.combine(
        [m(keep_in_memory=True) for m in (Accuracy, MacroF1, PerLabel, ConfusionMatrix)]
    ).compute(predictions=PREDICTED, references=GOLD)
    assert results["accuracy"] == pytest.approx(0.7)
    assert results["per_label"]["entailment"] == pytest.approx(
        {"precision": 3 / 5, "recall": 3 / 4, "f1": 2 / 3, "support": 4}
    )
    assert results["per_label"]["contradiction"] == pytest.approx(
        {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 4}
    )
    assert results["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 4 / 5) / 3)
    assert results["confusion_matrix"]["contradiction"] == {"entailment": 2, "contradiction": 2, "neutral": 0}


def test_metrics_of_logits_follow_the_label_order():
    names = ["neutral", "entailment", "contradiction"]
    logits = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    metrics = nli_metrics(logits, np.array([0, 1]), names)
    assert metrics["accuracy"] == 0.5
    assert metrics["confusion_matrix"]["entailment"]["contradiction"] == 1
    losses = [-math.log(math.e**2 / (math.e**2 + 2)), -math.log(1 / (math.e**3 + 2))]
    assert metrics["loss"] == pytest.approx(sum(losses) / 2)


def test_answers_that_are_no_numbers_are_said_to_be_so():
    with pytest.raises(BertSnliError, match="not finite"):
        nli_metrics(np.array([[np.nan, 0.0, 0.0]]), np.array([0]), BOOK_LABELS)


def test_answers_come_in_the_order_of_the_questions(model_folder: Path):
    model, tokenizer = load_classifier(str(model_folder)), load_tokenizer(str(model_folder))
    pairs = random_pairs(30)
    together = predict_pairs(model, tokenizer, pairs, batch_size=7)
    for pair, answer in zip(pairs, together, strict=True):
        (alone,) = predict_pairs(model, tokenizer, [pair])
        assert answer == pytest.approx(alone, abs=1e-5)
        assert list(answer.values()) == sorted(answer.values(), reverse=True)
        assert sum(answer.values()) == pytest.approx(1)
    assert len({next(iter(answer)) for answer in together}) > 1


def test_logits_equal_a_plain_forward_pass(model_folder: Path):
    model, tokenizer = load_classifier(str(model_folder)), load_tokenizer(str(model_folder))
    premises, hypotheses = map(list, zip(*random_pairs(20), strict=True))
    plain = tokenizer(premises, hypotheses, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**plain).logits.numpy()
    encoded = Dataset(PairEncoder(tokenizer, 40).encode(premises, hypotheses))
    ours = predict_logits(model, encoded, pad_token_id=tokenizer.pad_token_id, batch_size=6)
    # Large weights amplify the rounding of sums in another order; tests/unit/test_fast.py compares in float64.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def test_pairs_are_cut_as_in_fine_tuning(model_folder: Path, corpus: Path, tmp_path: Path):
    finetune(
        FinetuneRecipe(
            model_name_or_path=str(model_folder),
            dataset_name_or_path=str(corpus),
            output_dir=str(tmp_path / "run"),
            max_length=9,
            truncation="ratio",
            max_steps=1,
            max_train_samples=40,
            max_eval_samples=20,
        )
    )
    model, tokenizer = load_classifier(str(tmp_path / "run")), load_tokenizer(str(tmp_path / "run"))
    assert (model.config.max_pair_length, model.config.pair_truncation) == (9, "ratio")
    pairs = random_pairs(30)
    remembered = predict_pairs(model, tokenizer, pairs)
    assert remembered == predict_pairs(model, tokenizer, pairs, max_length=9, truncation="ratio")
    assert remembered != predict_pairs(model, tokenizer, pairs, truncation="longest")
    assert remembered != predict_pairs(model, tokenizer, pairs, max_length=12)
    accuracies = [
        evaluate_model(str(tmp_path / "run"), str(corpus), split="test", **options)["loss"]
        for options in ({}, {"max_length": 9, "truncation": "ratio"}, {"truncation": "longest"})
    ]
    assert accuracies[0] == accuracies[1] != accuracies[2]
    with pytest.raises(BertSnliError, match="--max_length 0"):
        predict_pairs(model, tokenizer, pairs, max_length=0)
    assert predict_pairs(model, tokenizer, []) == []


def test_every_way_of_truncation_is_an_option_of_the_commands():
    for command in ("predict", "evaluate"):
        for way in TRUNCATIONS:
            assert build_parser().parse_args([command, "model", "--truncation", way]).truncation == way


def test_the_report_is_saved_for_people_and_for_tools(model_folder: Path, corpus: Path, tmp_path: Path):
    results = evaluate_model(str(model_folder), str(corpus), split="test")
    table, picture = save_figures(results, tmp_path / "report")
    saved = json.loads(table.read_text())
    assert saved == results
    assert saved["pairs"] == sum(row["support"] for row in saved["per_label"].values())
    assert saved["without_gold_label"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"accuracy {results['accuracy']:.4f}" in format_figures(results)


def test_a_model_with_another_label_order_scores_the_same(model_folder: Path, corpus: Path, tmp_path: Path):
    model = load_classifier(str(model_folder))
    order = [2, 0, 1]
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter[order].clone())
    model.config.id2label = {new: BOOK_LABELS[old] for new, old in enumerate(order)}
    model.config.label2id = {name: number for number, name in model.config.id2label.items()}
    model.save_pretrained(tmp_path / "permuted")
    load_tokenizer(str(model_folder)).save_pretrained(tmp_path / "permuted")
    before = evaluate_model(str(model_folder), str(corpus))
    after = evaluate_model(str(tmp_path / "permuted"), str(corpus))
    for name in ("accuracy", "macro_f1", "per_label", "confusion_matrix"):
        assert after[name] == before[name]


def test_labels_are_in_the_order_of_the_logits_when_the_config_lists_them_otherwise(model_folder: Path):
    before = ordered_labels(load_config(str(model_folder)))
    config = json.loads((model_folder / "config.json").read_text())
    config["id2label"] = {number: config["id2label"][number] for number in ("2", "0", "1")}
    (model_folder / "config.json").write_text(json.dumps(config))
    assert ordered_labels(load_config(str(model_folder))) == before == list(BOOK_LABELS)


def test_labels_of_another_task_are_refused():
    config = D2LBertConfig(id2label={0: "positive", 1: "negative"}, label2id={"positive": 0, "negative": 1})
    with pytest.raises(BertSnliError, match="its labels are positive, negative, not entailment"):
        label_names(config, "models/sentiment")
