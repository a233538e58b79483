"""Sets of natural language inference as they were published: their columns, labels and annotators' answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from bert_snli.data.snli import load_evaluation_set, load_snli
from bert_snli.errors import BertSnliError
from bert_snli.labels import BOOK_LABELS, TWO_WAY_LABELS

PREMISE, HYPOTHESIS = 'A man\'s "dog", asleep.', "None"
LABELS = ["entailment", "neutral", "contradiction"]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_table(path: Path, rows: list[dict], **options) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def multinli(folder: Path) -> Path:
    rows = [
        {"annotator_labels": [label], "genre": "fiction", "gold_label": label, "pairID": "1", "promptID": "1"}
        | {"sentence1": PREMISE, "sentence1_binary_parse": "( A dog )", "sentence1_parse": "(ROOT)"}
        | {"sentence2": HYPOTHESIS, "sentence2_binary_parse": "None", "sentence2_parse": "(ROOT)"}
        for label in LABELS
    ]
    return write_jsonl(folder / "multinli_1.0_dev_matched.jsonl", rows)


def hans(folder: Path) -> Path:
    rows = [
        {"gold_label": label, "sentence1": PREMISE, "sentence2": HYPOTHESIS, "pairID": "ex0", "heuristic": "lexical"}
        for label in ["entailment", "non-entailment", "non-entailment"]
    ]
    path = folder / "heuristics_evaluation_set.txt"
    return write_table(path, rows, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)


def esnli(folder: Path) -> Path:
    rows = [
        {"pairID": "1", "gold_label": label, "Sentence1": PREMISE, "Sentence2": HYPOTHESIS, "Explanation_1": "so,\nyes"}
        for label in LABELS
    ]
    return write_table(folder / "esnli_dev.csv", rows)


def chaosnli(folder: Path) -> Path:
    rows: list[dict] = [
        {"uid": "1", "label_counter": {"e": 60, "n": 30, "c": 10}, "majority_label": label[0], "entropy": 1.2}
        | {"example": {"uid": "1", "premise": PREMISE, "hypothesis": HYPOTHESIS, "source": "snli_agree_3"}}
        for label in LABELS
    ]
    del rows[0]["label_counter"]["c"]  # as where nobody chose it
    return write_jsonl(folder / "chaosNLI_snli.jsonl", rows)


def breaking_nli(folder: Path) -> Path:
    rows = [
        {"sentence1": PREMISE, "sentence2": HYPOTHESIS, "gold_label": label, "category": "colors", "pairID": 1}
        for label in LABELS
    ]
    return write_jsonl(folder / "dataset.jsonl", rows)


def counterfactual(folder: Path) -> Path:
    rows = [{"sentence1": PREMISE, "sentence2": HYPOTHESIS, "gold_label": label} for label in LABELS]
    return write_table(folder / "test.tsv", rows, delimiter="\t")


def parquet(folder: Path) -> Path:
    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=LABELS)})
    rows = [{"premise": PREMISE, "hypothesis": HYPOTHESIS, "label": number} for number in range(3)]
    Dataset.from_list(rows, features=features).to_parquet(folder / "mine.parquet")
    return folder / "mine.parquet"


@pytest.mark.parametrize("write", [multinli, esnli, chaosnli, breaking_nli, counterfactual, parquet])
def test_published_sets_are_read_as_they_are(write, tmp_path: Path):
    path = write(tmp_path)
    found = load_evaluation_set(str(path))
    assert found.name == path.stem
    assert found.labels == list(BOOK_LABELS)
    assert [found.labels[row["label"]] for row in found.pairs] == LABELS
    assert set(zip(found.pairs["premise"], found.pairs["hypothesis"], strict=True)) == {(PREMISE, HYPOTHESIS)}
    assert found.num_dropped == 0


def test_hans_asks_only_whether_it_follows(tmp_path: Path):
    found = load_evaluation_set(str(hans(tmp_path)))
    assert found.labels == list(TWO_WAY_LABELS)
    assert found.pairs["label"][:] == [0, 1, 1]
    assert found.pairs["premise"][0] == PREMISE


def test_annotators_are_counted(tmp_path: Path, corpus: Path):
    assert load_evaluation_set(str(chaosnli(tmp_path))).pairs["votes"][:] == [[60, 0, 30], [60, 10, 30], [60, 10, 30]]
    counts = [{"majority_label": "e", "premise": "A", "hypothesis": "B", "label_counter": {"e": 3, "n": 1, "c": 0}}]
    whole = write_jsonl(tmp_path / "whole.jsonl", counts)
    assert load_evaluation_set(str(whole)).pairs["votes"][:] == [[3, 0, 1]]
    assert load_evaluation_set(str(multinli(tmp_path))).pairs["votes"][:] == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert "votes" not in load_evaluation_set(str(esnli(tmp_path))).pairs.column_names
    columns = {f"label{number}": "neutral" for number in range(1, 5)} | {"label5": ""}
    five = write_table(
        tmp_path / "five.txt",
        [{"gold_label": "neutral", "sentence1": "A", "sentence2": "B", **columns}],
        delimiter="\t",
    )
    assert load_evaluation_set(str(five)).pairs["votes"][:] == [[0, 0, 4]]
    none = {"gold_label": "neutral", "sentence1": "A", "sentence2": "B", **columns, "label5": None}
    assert load_evaluation_set(str(write_jsonl(tmp_path / "none.jsonl", [none]))).pairs["votes"][:] == [[0, 0, 4]]
    rows = [json.loads(line) for line in (corpus / "snli_1.0_test.jsonl").read_text().splitlines()]
    votes = load_evaluation_set(str(corpus), split="test").pairs["votes"][:]
    expected = [
        [row["annotator_labels"].count(label) for label in BOOK_LABELS] for row in rows if row["gold_label"] != "-"
    ]
    assert votes == expected


def test_annotators_are_understood_as_labels_are(tmp_path: Path):
    row = {"premise": "A", "hypothesis": "B", "label": "yes"}
    answers = [
        {"annotator_labels": ["yes", "N", "c", "other"]},
        {"label_counter": {"yes": 1, "neutral": 1, "contradiction": 1, "o": 5}},
    ]
    for number, answer in enumerate(answers):
        path = write_jsonl(tmp_path / f"{number}.jsonl", [{**row, **answer}])
        found = load_evaluation_set(str(path), label_names={"yes": "entailment"})
        assert found.pairs["votes"][:] == [[1, 1, 1]]


def test_a_split_is_the_one_that_load_snli_reads(corpus: Path):
    found = load_evaluation_set(str(corpus), split="validation")
    snli = load_snli(str(corpus), splits=["validation"])
    assert found.pairs.select_columns(["premise", "hypothesis", "label"])[:] == snli.splits["validation"][:]
    assert found.num_dropped == snli.num_dropped["validation"]


def test_a_split_of_another_name_is_found_by_it(tmp_path: Path):
    multinli(tmp_path).with_name("multinli_1.0_dev_mismatched.jsonl").write_bytes(b"{}")
    assert len(load_evaluation_set(str(tmp_path), split="dev_matched").pairs) == 3


def test_files_of_two_sets_are_not_taken_for_one(tmp_path: Path):
    for name in ("test_r1-00000-of-00001", "test_r2-00000-of-00001"):
        parquet(tmp_path).rename(tmp_path / f"{name}.parquet")
    with pytest.raises(BertSnliError, match="both test_r1.* and test_r2.* look like the test split"):
        load_evaluation_set(str(tmp_path))
    folders = [tmp_path / "b" / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir(parents=True)
        parquet(folder).rename(folder / "test-00000-of-00001.parquet")
    with pytest.raises(BertSnliError, match="look like the test split"):
        load_evaluation_set(str(tmp_path / "b"))


def test_stray_quotes_of_a_tsv_are_text(tmp_path: Path):
    sentences = ['"Yes, she said', "It's 5\" long.", '"Quoted"', "plain"]
    path = tmp_path / "dev.tsv"
    rows = [f"{sentence}\tB\tneutral\n" for sentence in sentences]
    path.write_text("sentence1\tsentence2\tgold_label\n" + "".join(rows))
    assert load_evaluation_set(str(path)).pairs["premise"][:] == sentences


def test_tables_are_text_throughout(tmp_path: Path):
    rows = [{"premise": "1.10", "hypothesis": "007", "label": number} for number in (0, 1, 2)] * 2000
    rows.append({"premise": "n/a", "hypothesis": "None", "label": "-"})
    path = write_table(tmp_path / "set[1].csv", rows)
    found = load_evaluation_set(str(path), label_names={"0": "entailment", "1": "neutral", "2": "contradiction"})
    assert (len(found.pairs), found.num_dropped) == (6000, 1)
    assert (found.pairs["premise"][0], found.pairs["hypothesis"][0]) == ("1.10", "007")


def test_a_missing_sentence_is_named(tmp_path: Path):
    row = {"premise": "A", "hypothesis": "B", "label": "neutral"}
    rows = [row, {**row, "premise": None}]
    with pytest.raises(BertSnliError, match="row 2 has no premise"):
        load_evaluation_set(str(write_jsonl(tmp_path / "none.jsonl", rows)))


def test_columns_and_labels_can_be_declared(tmp_path: Path):
    rows = [{"text": PREMISE, "claim": HYPOTHESIS, "class": number} for number in (0, 1, 2, 9)]
    path = write_table(tmp_path / "mine.csv", rows)
    declared = {"premise": "text", "hypothesis": "claim", "label": "class"}
    names = {"0": "entailment", "1": "neutral", "2": "contradiction", "9": "-"}
    found = load_evaluation_set(str(path), columns=declared, label_names=names)
    assert [found.labels[row["label"]] for row in found.pairs] == LABELS
    assert found.num_dropped == 1
    with pytest.raises(BertSnliError, match=r"label '0' in row 1 is none of .*; say what it means: --labels 0=LABEL"):
        load_evaluation_set(str(path), columns=declared)
    with pytest.raises(BertSnliError, match=r"no column words; it has text, claim, class"):
        load_evaluation_set(str(path), columns={**declared, "premise": "words"})


def test_a_file_has_no_splits(tmp_path: Path):
    with pytest.raises(BertSnliError, match="--split test: .* is one file"):
        load_evaluation_set(str(esnli(tmp_path)), split="test")
