"""Statistics of the evaluation report: each value is compared with a plain computation or an exact one."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.special
from datasets import ClassLabel, Dataset

from bert_snli.data.pair_encoding import PairEncoder, encode_pairs
from bert_snli.data.snli import EvaluationSet
from bert_snli.evaluation.analysis import (
    LENGTHS,
    Predictions,
    accuracy_by_pair_type,
    accuracy_by_slice,
    annotator_agreement,
    calibration,
    hardest_pairs,
    mcnemar_test,
)
from bert_snli.evaluation.metrics import label_metrics, measure_accuracy
from bert_snli.modeling.labels import D2L_LABELS, TWO_WAY_LABELS
from bert_snli.tokenization import build_tokenizer
from tests.support.checkpoints import SPECIALS

TOKENIZER = build_tokenizer(SPECIALS + "a man dog is was runs sleeps".split(), model_max_length=64)


def make_predictions(logits, golds, *, labels=D2L_LABELS, premises=None, hypotheses=None, votes=None) -> Predictions:
    columns = {
        "premise": premises or ["a man"] * len(golds),
        "hypothesis": hypotheses or ["a dog"] * len(golds),
        "label": list(golds),
    }
    if votes:
        columns["votes"] = votes
    pairs = Dataset.from_dict(columns).cast_column("label", ClassLabel(names=list(labels)))
    encoded = encode_pairs(pairs, PairEncoder(TOKENIZER, 64))
    return Predictions(EvaluationSet("test", pairs, 0), encoded, np.asarray(logits, dtype=np.float32))


def sample_predictions(count: int = 400, sharpness: float = 2.0, seed: int = 0) -> Predictions:
    """Draw gold labels from the softmax of `logits / sharpness`, so that `sharpness` is the best temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, 3)) * 3
    golds = [random.choice(3, p=row) for row in scipy.special.softmax(logits / sharpness, axis=1)]
    return make_predictions(logits, golds)


@pytest.mark.parametrize(("num_correct", "count"), [(0, 10), (7, 10), (10, 10), (7014, 9824)])
def test_interval_equals_the_wilson_interval(num_correct: int, count: int):
    """The limits are the shares p at which (share - p)^2 = z^2 p (1 - p) / n."""
    share, z_squared = num_correct / count, 3.841458820694124
    roots = np.roots([1 + z_squared / count, -2 * share - z_squared / count, share**2])
    found = measure_accuracy(np.arange(count) < num_correct)
    assert (found["pairs"], found["accuracy"]) == (count, share)
    assert found["accuracy_interval"] == pytest.approx(sorted(roots.real), abs=1e-9)


def test_calibration_error_and_bins_equal_a_plain_computation():
    predictions = sample_predictions()
    found = calibration(predictions)
    probabilities = scipy.special.softmax(predictions.logits.astype(float), axis=1)
    bins: dict[int, list] = {}
    for row, gold in zip(probabilities, predictions.references_R, strict=True):
        bins.setdefault(math.ceil(row.max() * 15), []).append((row.max(), row.argmax() == gold))
    error = sum(abs(sum(c for c, _ in b) - sum(r for _, r in b)) for b in bins.values()) / len(probabilities)
    assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-9)
    assert [entry["pairs"] for entry in found["bins"]] == [len(bins[place]) for place in sorted(bins)]


def test_calibration_finds_the_temperature_that_the_labels_were_drawn_with():
    found = calibration(sample_predictions(20_000, sharpness=2.0))
    assert found["temperature"] == pytest.approx(2.0, rel=0.05)
    assert found["error_at_temperature"] < 0.02 < found["expected_calibration_error"]


def test_two_label_calibration_handles_probabilities_of_one():
    logits = np.random.default_rng(0).normal(size=(2000, 3)) * 20
    predictions = make_predictions(logits, np.minimum(logits.argmax(axis=1), 1), labels=TWO_WAY_LABELS)
    found = calibration(predictions)
    assert predictions.probabilities().max() <= 1
    assert found["expected_calibration_error"] < 0.05 and 0 < found["temperature"] < 1


def test_mcnemar_p_value_equals_the_exact_binomial_test():
    golds = [0] * 30
    first = make_predictions([[1, 0, 0]] * 20 + [[0, 1, 0]] * 10, golds)
    second = make_predictions([[1, 0, 0]] * 12 + [[0, 0, 1]] * 16 + [[1, 0, 0]] * 2, golds)
    found = mcnemar_test(first, second)
    assert (found["only_this_right"], found["only_other_right"]) == (8, 2)
    assert (found["both_right"], found["both_wrong"]) == (12, 8)
    tail = sum(Fraction(math.comb(10, k), 2**10) for k in range(3))
    assert found["p_value"] == pytest.approx(float(2 * tail))
    assert mcnemar_test(first, first)["p_value"] == 1.0


def test_two_label_sets_merge_contradiction_and_neutral():
    logits = [[1.0, 0.9, 0.9], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [3.0, 0.0, 0.0]]
    predictions = make_predictions(logits, [1, 1, 1, 0], labels=TWO_WAY_LABELS)
    assert predictions.predictions_R.tolist() == [0, 1, 1, 0]  # the most probable of three labels, then merged
    assert predictions.is_correct_R.mean() == 0.75
    probabilities_RC = scipy.special.softmax(np.array(logits), axis=1)
    not_entailment_R = probabilities_RC[:, 1] + probabilities_RC[:, 2]
    np.testing.assert_allclose(predictions.probabilities()[:, 1], not_entailment_R, atol=1e-7)
    confidence_R = predictions.probability_of(predictions.predictions_R)
    np.testing.assert_allclose(confidence_R[0], probabilities_RC[0, 0], atol=1e-7)


def test_macro_f1_averages_only_the_labels_that_occur():
    predictions = ["entailment", "contradiction", "entailment"]
    references = ["entailment", "contradiction", "contradiction"]
    assert label_metrics(predictions, references, D2L_LABELS)["macro_f1"] == pytest.approx(2 / 3)


def test_slices_have_the_expected_pairs_and_accuracies():
    premises = ["a man runs", "a man runs", "a zebra", "a man " * 12]
    hypotheses = ["a man", "a cat sleeps", "a zebra", "dog"]
    predictions = make_predictions(np.eye(3)[[0, 1, 0, 0]], [0, 0, 0, 0], premises=premises, hypotheses=hypotheses)
    found = accuracy_by_pair_type(predictions, TOKENIZER.unk_token_id)
    by_slice = {name: {e["slice"]: (e["pairs"], e["accuracy"]) for e in entries} for name, entries in found.items()}
    assert by_slice["length"] == {"up to 10": (3, 2 / 3), "21 to 25": (1, 1.0)}
    # Shared tokens: 2 of 2; 1 of 3 (cat is unknown); 1 of 2 (unknown tokens never match); 0 of 1.
    assert by_slice["word_overlap"] == {
        "up to 20%": (1, 1.0),
        "20% to 40%": (1, 0.0),
        "40% to 60%": (1, 1.0),
        "above 80%": (1, 1.0),
    }
    assert by_slice["unknown_words"] == {"0": (2, 1.0), "1": (1, 0.0), "2": (1, 1.0)}


def test_each_value_is_in_exactly_one_slice():
    values = np.arange(60)
    entries = accuracy_by_slice(np.ones(60, bool), values, LENGTHS)
    assert [(e["slice"], e["pairs"]) for e in entries] == [
        ("up to 10", 11), ("11 to 15", 5), ("16 to 20", 5), ("21 to 25", 5), ("26 to 30", 5), ("31 to 40", 10),
        ("41 or more", 19),
    ]  # fmt: skip


def test_annotator_agreement_is_computed_from_the_votes():
    votes = [[5, 0, 0], [3, 2, 0], [0, 4, 1], [0, 0, 0]]
    predictions = make_predictions(np.eye(3)[[0, 1, 1, 0]], [0, 0, 1, 0], votes=votes)
    found = annotator_agreement(predictions)
    assert found["pairs"] == 3
    assert found["one_annotator_agrees_with_gold"] == pytest.approx((1 + 0.6 + 0.8) / 3)
    assert found["one_annotator_agrees_with_model"] == pytest.approx((1 + 0.4 + 0.8) / 3)
    levels = {entry["slice"]: (entry["pairs"], entry["accuracy"]) for entry in found["accuracy_by_agreement"]}
    assert levels == {"50% to 70%": (1, 0.0), "70% to 90%": (1, 1.0), "above 90%": (1, 1.0)}
    assert annotator_agreement(make_predictions(np.eye(3), [0, 1, 2])) is None


def test_hardest_pairs_are_the_wrong_ones_ordered_by_gold_probability():
    predictions = make_predictions([[9, 0, 0], [0, 3, 0], [0, 5, 0], [0, 1, 0]], [0, 0, 0, 0], premises=list("abcd"))
    assert [pair["premise"] for pair in hardest_pairs(predictions)] == ["c", "b", "d"]
    assert hardest_pairs(predictions, 1)[0]["predicted"] == "contradiction"


def test_hardest_pairs_of_a_two_label_set_exclude_correct_predictions_with_low_probability():
    correct, wrong = [[1.0, 0.9, 0.9]] * 25, [[1.0, 0.95, 0.5]] * 5
    two_way = make_predictions(correct + wrong, [0] * 25 + [1] * 5, labels=TWO_WAY_LABELS)
    assert [pair["gold"] for pair in hardest_pairs(two_way)] == [TWO_WAY_LABELS[1]] * 5
