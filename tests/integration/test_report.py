"""The evaluation report: each figure against a plain computation of it, and its pages."""

from __future__ import annotations

import json
import math
import re
from contextlib import nullcontext
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import evaluate
import numpy as np
import pytest
import scipy.special
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer

from bert_snli.cli import main
from bert_snli.data.pair_encoding import PairEncoder, encode_pairs
from bert_snli.data.snli import EvaluationSet
from bert_snli.errors import BertSnliError
from bert_snli.evaluation.answers import Answers
from bert_snli.evaluation.calibration import calibration
from bert_snli.evaluation.comparison import mcnemar, swapped_labels
from bert_snli.evaluation.metrics import interval, label_metrics
from bert_snli.evaluation.pages import check_report_dir
from bert_snli.evaluation.report import evaluate_model, save_figures
from bert_snli.evaluation.slices import accuracy_by, annotators, hardest, slices
from bert_snli.inference import load_classifier
from bert_snli.labels import BOOK_LABELS, TWO_WAY_LABELS
from bert_snli.prediction import predict_pairs
from bert_snli.tokenization import build_tokenizer
from tests.support.checkpoints import SPECIALS
from tests.support.classifiers import random_pairs, save_random_classifier

WORDS = "a man dog is was runs sleeps".split()
TOKENIZER = build_tokenizer(SPECIALS + WORDS, model_max_length=64)


def answers_of(logits, golds, *, labels=BOOK_LABELS, premises=None, hypotheses=None, votes=None) -> Answers:
    columns = {
        "premise": premises or ["a man"] * len(golds),
        "hypothesis": hypotheses or ["a dog"] * len(golds),
        "label": list(golds),
    }
    if votes:
        columns["votes"] = votes
    pairs = Dataset.from_dict(columns).cast_column("label", ClassLabel(names=list(labels)))
    encoded = encode_pairs(pairs, PairEncoder(TOKENIZER, 64))
    return Answers(EvaluationSet("test", pairs, 0), encoded, np.asarray(logits, dtype=np.float32))


def random_answers(count: int = 400, sharpness: float = 2.0, seed: int = 0) -> Answers:
    """Gold labels drawn from the softmax of `logits / sharpness`: the best temperature is `sharpness`."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, 3)) * 3
    golds = [random.choice(3, p=row) for row in scipy.special.softmax(logits / sharpness, axis=1)]
    return answers_of(logits, golds)


def test_the_interval_is_wilsons():
    for right, count in ((0, 10), (7, 10), (7014, 9824)):
        share, z = right / count, 1.959963984540054
        middle = (share + z * z / (2 * count)) / (1 + z * z / count)
        half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
        assert interval(right, count) == pytest.approx([middle - half, middle + half], abs=1e-9)


def test_calibration_equals_the_plain_way():
    answers = random_answers()
    found = calibration(answers)
    probabilities = scipy.special.softmax(answers.logits.astype(float), axis=1)
    bins: dict[int, list] = {}
    for row, gold in zip(probabilities, answers.references_R, strict=True):
        bins.setdefault(math.ceil(row.max() * 15), []).append((row.max(), row.argmax() == gold))
    error = sum(abs(sum(c for c, _ in b) - sum(r for _, r in b)) for b in bins.values()) / len(probabilities)
    assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-9)
    assert [entry["pairs"] for entry in found["bins"]] == [len(bins[place]) for place in sorted(bins)]


def test_the_temperature_is_found():
    found = calibration(random_answers(20_000, sharpness=2.0))
    assert found["temperature"] == pytest.approx(2.0, rel=0.05)
    assert found["error_at_temperature"] < 0.02 < found["expected_calibration_error"]


def test_mcnemar_is_the_exact_binomial():
    golds = [0] * 30
    this = answers_of([[1, 0, 0]] * 20 + [[0, 1, 0]] * 10, golds)
    other = answers_of([[1, 0, 0]] * 12 + [[0, 0, 1]] * 16 + [[1, 0, 0]] * 2, golds)
    found = mcnemar(this, other)
    assert (found["only_this_right"], found["only_other_right"]) == (8, 2)
    assert (found["both_right"], found["both_wrong"]) == (12, 8)
    tail = sum(Fraction(math.comb(10, k), 2**10) for k in range(3))
    assert found["p_value"] == pytest.approx(float(2 * tail))
    assert mcnemar(this, this)["p_value"] == 1.0


def test_swapped_labels_are_named():
    random = np.random.default_rng(0)
    golds = random.integers(0, 3, 200)
    right = np.eye(3)[golds] + random.normal(size=(200, 3)) * 0.3
    assert swapped_labels(answers_of(right, golds)) is None
    assert swapped_labels(answers_of(random.normal(size=(200, 3)), golds)) is None
    found = swapped_labels(answers_of(right[:, [0, 2, 1]], golds))
    assert found["read_as"] == {"entailment": "entailment", "contradiction": "neutral", "neutral": "contradiction"}
    assert found["accuracy"] > 0.9 > 0.5 > found["instead_of"]
    turned = swapped_labels(answers_of(right[:, [1, 2, 0]], golds))
    # What the model calls entailment is contradiction, and so on round.
    assert turned["read_as"] == {"entailment": "contradiction", "contradiction": "neutral", "neutral": "entailment"}


def test_a_model_that_is_fond_of_one_answer_is_not_accused():
    """On a set whose pairs all have one label, another order of the labels can always be better."""
    fond = np.tile([0.1, 0.2, 2.0], (200, 1))
    assert swapped_labels(answers_of(fond, [1] * 200)) is None
    assert swapped_labels(answers_of(fond, [1] * 170 + [0] * 15 + [2] * 15)) is None
    assert swapped_labels(answers_of(fond, [1] * 140 + [0] * 30 + [2] * 30)) is None
    assert (
        swapped_labels(answers_of(np.tile([2.0, 0.1, 0.2], (200, 1)), [1] * 100 + [0] * 100, labels=TWO_WAY_LABELS))
        is None
    )


def test_a_handful_of_pairs_is_no_proof_of_swapped_labels():
    assert swapped_labels(answers_of([[0, 0, 1]] * 3, [1, 1, 1])) is None


def test_two_way_sets_merge_contradiction_and_neutral():
    logits = [[1.0, 0.9, 0.9], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [3.0, 0.0, 0.0]]
    answers = answers_of(logits, [1, 1, 1, 0], labels=TWO_WAY_LABELS)
    assert answers.predictions_R.tolist() == [0, 1, 1, 0]  # the most probable of three is taken, then merged
    assert answers.accuracy == 0.75
    three = scipy.special.softmax(np.array(logits), axis=1)
    np.testing.assert_allclose(answers.probabilities()[:, 1], three[:, 1] + three[:, 2], atol=1e-7)
    np.testing.assert_allclose(answers.confidence_R[0], three[0, 0], atol=1e-7)


def test_a_two_way_set_is_calibrated_where_the_model_is_sure_of_all():
    logits = np.random.default_rng(0).normal(size=(2000, 3)) * 20
    answers = answers_of(logits, np.minimum(logits.argmax(axis=1), 1), labels=TWO_WAY_LABELS)
    found = calibration(answers)
    assert answers.probabilities().max() <= 1
    assert found["expected_calibration_error"] < 0.05 and 0 < found["temperature"] < 1


def test_macro_f1_minds_the_labels_that_are_there():
    names = ["entailment", "contradiction"]
    assert label_metrics(names, names, BOOK_LABELS)["macro_f1"] == 1.0


def test_slices_equal_the_plain_way():
    premises = ["a man runs", "a man runs", "a zebra", "a man " * 12]
    hypotheses = ["a man", "a cat sleeps", "a zebra", "dog"]
    answers = answers_of(np.eye(3)[[0, 1, 0, 0]], [0, 0, 0, 0], premises=premises, hypotheses=hypotheses)
    found = slices(answers, TOKENIZER.unk_token_id)
    shown = {name: {e["slice"]: (e["pairs"], e["accuracy"]) for e in entries} for name, entries in found.items()}
    assert shown["length"] == {"up to 10": (3, 2 / 3), "21 to 25": (1, 1.0)}
    # a, man of a, man; a of a, cat, sleeps (cat is unknown); a of a, zebra (two unknown words are not the same); none
    assert shown["word_overlap"] == {
        "up to 20%": (1, 1.0),
        "20% to 40%": (1, 0.0),
        "40% to 60%": (1, 1.0),
        "above 80%": (1, 1.0),
    }
    assert shown["unknown_words"] == {"0": (2, 1.0), "1": (1, 0.0), "2": (1, 1.0)}


def test_every_value_is_in_one_slice():
    values = np.arange(60)
    entries = accuracy_by(np.ones(60, bool), values, (10, 15, 40), "{:g}", first="up to {}", step=1)
    assert [(e["slice"], e["pairs"]) for e in entries] == [
        ("up to 10", 11), ("11 to 15", 5), ("16 to 40", 25), ("41 or more", 19),
    ]  # fmt: skip


def test_annotators_agree_with_gold_and_model():
    votes = [[5, 0, 0], [3, 2, 0], [0, 4, 1], [0, 0, 0]]
    answers = answers_of(np.eye(3)[[0, 1, 1, 0]], [0, 0, 1, 0], votes=votes)
    found = annotators(answers)
    assert found["pairs"] == 3
    assert found["one_annotator_agrees_with_gold"] == pytest.approx((1 + 0.6 + 0.8) / 3)
    assert found["one_annotator_agrees_with_model"] == pytest.approx((1 + 0.4 + 0.8) / 3)
    levels = {entry["slice"]: (entry["pairs"], entry["accuracy"]) for entry in found["accuracy_by_agreement"]}
    assert levels == {"50% to 70%": (1, 0.0), "70% to 90%": (1, 1.0), "above 90%": (1, 1.0)}
    assert annotators(answers_of(np.eye(3), [0, 1, 2])) is None


def test_the_hardest_pairs_are_wrong_and_come_in_order():
    answers = answers_of([[9, 0, 0], [0, 3, 0], [0, 5, 0], [0, 1, 0]], [0, 0, 0, 0], premises=list("abcd"))
    assert [pair["premise"] for pair in hardest(answers)] == ["c", "b", "d"]
    assert hardest(answers, 1)[0]["predicted"] == "contradiction"
    right, wrong = [[1.0, 0.9, 0.9]] * 25, [[1.0, 0.95, 0.5]] * 5
    two_way = answers_of(right + wrong, [0] * 25 + [1] * 5, labels=TWO_WAY_LABELS)
    assert len(hardest(two_way)) == 5  # though the right ones have less probability of the gold label


class Links(HTMLParser):
    """What a page would fetch, and its text."""

    def __init__(self):
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href"}]


@pytest.fixture
def nasty_set(tmp_path: Path) -> Path:
    sentences = ["<script>alert(1)</script>", "a | man `runs` *", "a dog is", "[x](http://y)\\", "a", "man"]
    rows = [
        {"sentence1": premise, "sentence2": hypothesis, "gold_label": label}
        for premise in sentences
        for hypothesis in sentences
        for label in BOOK_LABELS
    ]
    path = tmp_path / "nasty.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_pages(model_folder: Path, nasty_set: Path, tmp_path: Path, capsys):
    folder = tmp_path / "report"
    arguments = ["evaluate", str(model_folder), "--dataset_name_or_path", str(nasty_set), "--report", str(folder)]
    assert main([*arguments, "--compare", str(model_folder)]) == 0
    said = capsys.readouterr().out
    assert "McNemar's exact test p = 1" in said
    names = {"report.md", "report.html", "report.json", "confusion_matrix.png", "reliability.png", "slices.png"}
    assert {path.name for path in folder.iterdir()} == names

    report = json.loads((folder / "report.json").read_text())
    saved = json.loads((model_folder / "eval_results_nasty.json").read_text())
    assert saved == {name: report[name] for name in saved}
    assert report["majority_share"] == pytest.approx(1 / 3)
    assert report["comparison"]["difference"] == 0
    blank = predict_pairs(
        load_classifier(str(model_folder)),
        AutoTokenizer.from_pretrained(model_folder),
        [("", json.loads(line)["sentence2"]) for line in nasty_set.read_text().splitlines()],
    )
    golds = [json.loads(line)["gold_label"] for line in nasty_set.read_text().splitlines()]
    right = sum(next(iter(scores)) == gold for scores, gold in zip(blank, golds, strict=True))
    assert report["hypothesis_only"]["accuracy"] == pytest.approx(right / len(golds))

    page = Links()
    html = (folder / "report.html").read_text()
    page.feed(html)
    assert "script" not in page.tags and html.count("&lt;script&gt;") > 0
    assert len(page.links) == 3 and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http://" not in html.replace("[x](http://y)", "")
    markdown = (folder / "report.md").read_text()
    assert set(re.findall(r"\]\(([^)]*\.png)\)", markdown)) == {name for name in names if name.endswith("png")}
    rows = [line for line in markdown.splitlines() if line.startswith("|") and "alert" in line]
    assert rows and all(len(re.findall(r"(?<!\\)\|", row)) == 6 and "<script>" not in row for row in rows)


def test_swapped_labels_are_said_aloud(model_folder: Path, tmp_path: Path, capsys):
    """The data numbers neutral 1 and contradiction 2; told otherwise, the guard sees it."""
    model, tokenizer = load_classifier(str(model_folder)), AutoTokenizer.from_pretrained(model_folder)
    asked = random_pairs(1500)
    answers = [next(iter(scores)) for scores in predict_pairs(model, tokenizer, asked)]
    chosen = [row for label in BOOK_LABELS for row in [n for n, answer in enumerate(answers) if answer == label][:40]]
    pairs, golds = [asked[row] for row in chosen], [answers[row] for row in chosen]
    assert min(golds.count(label) for label in BOOK_LABELS) >= 20
    number = {"entailment": 0, "neutral": 1, "contradiction": 2}
    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": Value("int64")})
    rows = [{"premise": p, "hypothesis": h, "label": number[g]} for (p, h), g in zip(pairs, golds, strict=True)]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "set.parquet")
    command = ["evaluate", str(model_folder), "--dataset_name_or_path", str(tmp_path / "set.parquet")]
    assert main([*command, "--labels", "0=entailment", "1=neutral", "2=contradiction"]) == 0
    quiet = capsys.readouterr()
    assert "accuracy 1.0000" in quiet.out and "swapped" not in quiet.err
    assert main([*command, "--labels", "0=entailment", "1=contradiction", "2=neutral"]) == 0
    loud = capsys.readouterr()
    assert "labels are probably swapped" in loud.err
    moved = "reading neutral where the model says contradiction and contradiction where the model says neutral"
    assert moved in loud.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--columns", "premise"], "--columns premise: write premise|hypothesis|label=NAME"),
        (["--columns", "text=premise"], "--columns text=premise: write"),
        (["--labels", "0=yes"], "--labels 0=yes: write FOUND=entailment|contradiction|neutral"),
        (["--compare", "x"], "--compare x: add --report DIR"),
        (["--report", __file__], "is a file; name a folder"),
        (["--output_dir", f"{__file__}/deep/er"], "test_report.py is a file; name a folder"),
        (["--split", "nowhere"], "no .jsonl, .txt, .tsv, .csv, .parquet file of the nowhere split"),
    ],
)
def test_wrong_options_are_one_line(options: list[str], message: str, model_folder: Path, corpus: Path, capsys):
    before = sorted(model_folder.iterdir())
    assert main(["evaluate", str(model_folder), "--dataset_name_or_path", str(corpus), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert sorted(model_folder.iterdir()) == before


def test_report_on_other_weights_is_not_overwritten(model_folder: Path, nasty_set: Path, tmp_path: Path, capsys):
    other, folder = save_random_classifier(tmp_path / "other", seed=1), tmp_path / "report"

    def evaluate_into_folder(model: Path) -> int:
        return main(["evaluate", str(model), "--dataset_name_or_path", str(nasty_set), "--report", str(folder)])

    assert evaluate_into_folder(model_folder) == 0
    before = (folder / "report.json").read_bytes()
    assert evaluate_into_folder(model_folder) == 0  # the same weights
    assert (folder / "report.json").read_bytes() == before
    capsys.readouterr()
    assert evaluate_into_folder(other) == 2
    said = capsys.readouterr().err
    assert f"--report {folder}: holds a report on other weights ({model_folder}); name another folder" in said
    assert said.count("\n") == 1
    assert (folder / "report.json").read_bytes() == before and not list(other.glob("eval_results_*"))


@pytest.mark.parametrize(
    ("old", "new", "is_refused"),
    [
        ('{"model": "a", "weights_sha256": "1"}', ("b", "1"), False),  # the folder was moved
        ('{"model": "a", "weights_sha256": "1"}', ("a", "2"), True),  # it was trained again
        ('{"model": "a", "weights_sha256": null}', ("a", None), False),  # a model on the Hub
        ('{"model": "a", "weights_sha256": null}', ("b", None), True),
        ('{"accuracy": 1}', ("a", "1"), True),
        ("[", ("a", None), True),
    ],
)
def test_report_may_be_replaced_only_by_one_on_the_same_weights(old: str, new: tuple, is_refused: bool, tmp_path: Path):
    (tmp_path / "report.json").write_text(old)
    with pytest.raises(BertSnliError, match="holds a report") if is_refused else nullcontext():
        check_report_dir(tmp_path, *new)


def test_figures_of_other_data_are_not_overwritten(model_folder: Path, corpus: Path, tmp_path: Path):
    results = evaluate_model(str(model_folder), str(corpus), split="test")
    other = {**results, "dataset": "elsewhere/test.tsv"}
    assert [path.name for path in save_figures(results, tmp_path)][0] == "eval_results_test.json"
    assert [path.name for path in save_figures(other, tmp_path)][0] == "eval_results_elsewhere_test.json"
    assert [path.name for path in save_figures(results, tmp_path)][0] == "eval_results_test.json"


def test_the_evaluator_of_the_evaluate_library_works_on_our_models(model_folder: Path):
    from bert_snli.evaluation.metrics import Accuracy

    model, tokenizer = load_classifier(str(model_folder)), AutoTokenizer.from_pretrained(model_folder)
    premises, hypotheses = [f"a {word}" for word in WORDS], [f"{word} is" for word in reversed(WORDS)]
    answers = [next(iter(s)) for s in predict_pairs(model, tokenizer, list(zip(premises, hypotheses, strict=True)))]
    golds = [answers[0]] * len(answers)
    data = Dataset.from_dict({"premise": premises, "hypothesis": hypotheses, "label": golds})

    result = evaluate.evaluator("text-classification").compute(
        model_or_pipeline=model,
        tokenizer=tokenizer,
        data=data,
        metric=Accuracy(),
        input_column="premise",
        second_input_column="hypothesis",
        label_column="label",
    )
    assert result["accuracy"] == pytest.approx(answers.count(golds[0]) / len(golds))
