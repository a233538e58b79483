"""`bert-snli evaluate --report`: its pages and its errors."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from bert_snli.cli import main
from bert_snli.inference import load_classifier
from bert_snli.modeling.labels import D2L_LABELS
from bert_snli.prediction import Predictor
from tests.support.classifiers import save_random_classifier
from tests.support.command_line import error_line


class TagCollector(HTMLParser):
    """Collect the tags of a page and the addresses that it would fetch."""

    def __init__(self):
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href"}]


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def markup_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """108 pairs whose texts contain HTML and Markdown."""
    sentences = ["<script>alert(1)</script>", "a | man `runs` *", "a dog is", "[x](http://y)\\", "a", "man"]
    rows = [
        {"sentence1": premise, "sentence2": hypothesis, "gold_label": label}
        for premise in sentences
        for hypothesis in sentences
        for label in D2L_LABELS
    ]
    path = tmp_path_factory.mktemp("markup") / "markup.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def reported_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_classifier(tmp_path_factory.mktemp("reported") / "model")


@pytest.fixture(scope="module")
def report_dir(reported_model: Path, markup_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of `reported_model`, compared with itself, on `markup_dataset`."""
    folder = tmp_path_factory.mktemp("report") / "report"
    command = ["evaluate", reported_model, "--dataset_name_or_path", markup_dataset, "--report", folder]
    assert main([*map(str, command), "--compare", str(reported_model)]) == 0
    return folder


def test_report_has_its_six_files(report_dir: Path):
    names = {"report.md", "report.html", "report.json", "confusion_matrix.png", "reliability.png", "slices.png"}
    assert {path.name for path in report_dir.iterdir()} == names


def test_report_json_equals_the_saved_evaluation_results(report_dir: Path, reported_model: Path):
    report = json.loads((report_dir / "report.json").read_text())
    saved = json.loads((reported_model / "eval_results_markup.json").read_text())
    assert saved["pairs"] == 108
    assert saved == {name: report[name] for name in saved}


def test_report_accuracies_equal_a_plain_computation(report_dir: Path, reported_model: Path, markup_dataset: Path):
    report = json.loads((report_dir / "report.json").read_text())
    rows = read_jsonl(markup_dataset)
    golds = [row["gold_label"] for row in rows]
    model, tokenizer = load_classifier(str(reported_model)), AutoTokenizer.from_pretrained(reported_model)

    def compute_accuracy(pairs: list[tuple[str, str]]) -> float:
        predicted = [next(iter(scores)) for scores in Predictor(model, tokenizer)(pairs)]
        return sum(label == gold for label, gold in zip(predicted, golds, strict=True)) / len(golds)

    whole = compute_accuracy([(row["sentence1"], row["sentence2"]) for row in rows])
    assert report["accuracy"] == pytest.approx(whole)
    hypothesis_only = compute_accuracy([("", row["sentence2"]) for row in rows])
    assert report["hypothesis_only"]["accuracy"] == pytest.approx(hypothesis_only)
    assert report["majority_share"] == pytest.approx(1 / 3)


def test_comparison_of_a_model_with_itself_finds_no_difference(report_dir: Path):
    comparison = json.loads((report_dir / "report.json").read_text())["comparison"]
    assert (comparison["difference"], comparison["p_value"]) == (0, 1)


def test_report_html_escapes_text_and_fetches_nothing(report_dir: Path):
    html = (report_dir / "report.html").read_text()
    page = TagCollector()
    page.feed(html)
    assert "script" not in page.tags and "&lt;script&gt;" in html
    assert len(page.links) == 3 and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http://" not in html.replace("[x](http://y)", "")


def test_report_markdown_escapes_text_and_links_its_images(report_dir: Path):
    markdown = (report_dir / "report.md").read_text()
    images = set(re.findall(r"\]\(([^)]*\.png)\)", markdown))
    assert images == {path.name for path in report_dir.glob("*.png")}
    rows = [line for line in markdown.splitlines() if line.startswith("|") and "alert" in line]
    assert rows and all(len(re.findall(r"(?<!\\)\|", row)) == 6 and "<script>" not in row for row in rows)


def test_report_on_other_weights_is_not_overwritten(
    reported_model: Path, report_dir: Path, markup_dataset: Path, tmp_path: Path, capsys
):
    other = save_random_classifier(tmp_path / "other", seed=1)
    before = (report_dir / "report.json").read_bytes()
    command = ["evaluate", other, "--dataset_name_or_path", markup_dataset, "--report", report_dir]
    message = f"--report {report_dir}: holds a report on other weights ({reported_model}); give another folder"
    assert message in error_line(command, capsys)
    assert (report_dir / "report.json").read_bytes() == before and not list(other.glob("eval_results_*"))


def test_rerun_replaces_the_report_and_prints_the_p_value(
    reported_model: Path, markup_dataset: Path, tmp_path: Path, capsys
):
    command = ["evaluate", reported_model, "--dataset_name_or_path", markup_dataset, "--report", tmp_path / "report"]
    assert main(list(map(str, command))) == 0
    assert "McNemar" not in capsys.readouterr().out
    assert json.loads((tmp_path / "report" / "report.json").read_text())["comparison"] is None
    assert main([*map(str, command), "--compare", str(reported_model)]) == 0
    assert "McNemar's exact test p = 1" in capsys.readouterr().out
    before = (tmp_path / "report" / "report.json").read_bytes()
    (tmp_path / "report" / "report.md").unlink()
    assert main([*map(str, command), "--compare", str(reported_model)]) == 0
    assert (tmp_path / "report" / "report.json").read_bytes() == before
    assert (tmp_path / "report" / "report.md").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--columns", "premise"], "--columns: premise: write NAME=VALUE"),
        (["--columns", "text=premise"], "--columns text=premise: write premise|hypothesis|label=NAME"),
        (["--compare", "x"], "--compare x: needs a report; add --report DIR"),
        (["--report", __file__], "is a file; give a folder"),
        (["--output_dir", f"{__file__}/deep/er"], "test_report.py: is a file; give a folder"),
        (["--split", "nowhere"], "no .jsonl, .txt, .tsv, .csv, .parquet file of the nowhere split"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, list) else "",
)
def test_wrong_option_is_refused_in_one_line(
    options: list[str], message: str, model_folder: Path, corpus: Path, capsys
):
    before = sorted(model_folder.iterdir())
    assert message in error_line(["evaluate", model_folder, "--dataset_name_or_path", corpus, *options], capsys)
    assert sorted(model_folder.iterdir()) == before
