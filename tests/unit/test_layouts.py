"""Evaluation sets in their published formats: MultiNLI, HANS, e-SNLI, ChaosNLI, Breaking NLI, counterfactual SNLI."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from bert_snli.data.snli import load_evaluation_set, load_snli
from bert_snli.errors import BertSnliError
from bert_snli.modeling.labels import D2L_LABELS, TWO_WAY_LABELS

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


def write_multinli(folder: Path) -> Path:
    rows = [
        {"annotator_labels": [label], "genre": "fiction", "gold_label": label, "pairID": "1", "promptID": "1"}
        | {"sentence1": PREMISE, "sentence1_binary_parse": "( A dog )", "sentence1_parse": "(ROOT)"}
        | {"sentence2": HYPOTHESIS, "sentence2_binary_parse": "None", "sentence2_parse": "(ROOT)"}
        for label in LABELS
    ]
    return write_jsonl(folder / "multinli_1.0_dev_matched.jsonl", rows)


def write_hans(folder: Path) -> Path:
    rows = [
        {"gold_label": label, "sentence1": PREMISE, "sentence2": HYPOTHESIS, "pairID": "ex0", "heuristic": "lexical"}
        for label in ["entailment", "non-entailment", "non-entailment"]
    ]
    path = folder / "heuristics_evaluation_set.txt"
    return write_table(path, rows, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)


def write_esnli(folder: Path) -> Path:
    rows = [
        {"pairID": "1", "gold_label": label, "Sentence1": PREMISE, "Sentence2": HYPOTHESIS, "Explanation_1": "so,\nyes"}
        for label in LABELS
    ]
    return write_table(folder / "esnli_dev.csv", rows)


def write_chaosnli(folder: Path) -> Path:
    rows: list[dict] = [
        {"uid": "1", "label_counter": {"e": 60, "n": 30, "c": 10}, "majority_label": label[0], "entropy": 1.2}
        | {"example": {"uid": "1", "premise": PREMISE, "hypothesis": HYPOTHESIS, "source": "snli_agree_3"}}
        for label in LABELS
    ]
    del rows[0]["label_counter"]["c"]  # labels that no annotator chose are absent
    return write_jsonl(folder / "chaosNLI_snli.jsonl", rows)


def write_breaking_nli(folder: Path) -> Path:
    rows = [
        {"sentence1": PREMISE, "sentence2": HYPOTHESIS, "gold_label": label, "category": "colors", "pairID": 1}
        for label in LABELS
    ]
    return write_jsonl(folder / "dataset.jsonl", rows)


def write_counterfactual(folder: Path) -> Path:
    rows = [{"sentence1": PREMISE, "sentence2": HYPOTHESIS, "gold_label": label} for label in LABELS]
    return write_table(folder / "test.tsv", rows, delimiter="\t")


def write_parquet(folder: Path) -> Path:
    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=LABELS)})
    rows = [{"premise": PREMISE, "hypothesis": HYPOTHESIS, "label": number} for number in range(3)]
    Dataset.from_list(rows, features=features).to_parquet(folder / "mine.parquet")
    return folder / "mine.parquet"


@pytest.mark.parametrize(
    "write",
    [write_multinli, write_esnli, write_chaosnli, write_breaking_nli, write_counterfactual, write_parquet],
    ids=lambda write: write.__name__.removeprefix("write_"),
)
def test_published_format_is_read_without_options(write, tmp_path: Path):
    path = write(tmp_path)
    found = load_evaluation_set(str(path))
    assert found.name == path.stem
    assert found.labels == list(D2L_LABELS)
    assert [found.labels[row["label"]] for row in found.pairs] == LABELS
    assert set(zip(found.pairs["premise"], found.pairs["hypothesis"], strict=True)) == {(PREMISE, HYPOTHESIS)}
    assert found.num_dropped == 0


def test_hans_has_two_labels(tmp_path: Path):
    found = load_evaluation_set(str(write_hans(tmp_path)))
    assert found.labels == list(TWO_WAY_LABELS) == ["entailment", "non-entailment"]
    assert found.pairs["label"][:] == [0, 1, 1]
    assert found.pairs["premise"][0] == PREMISE


def read_votes(path: Path, **options) -> list[list[int]]:
    """The numbers of annotators that chose entailment, contradiction and neutral, for each pair."""
    return load_evaluation_set(str(path), **options).pairs["votes"][:]


SENTENCES = {"gold_label": "neutral", "sentence1": "A", "sentence2": "B"}


def test_label_counter_gives_the_votes_of_chaosnli(tmp_path: Path):
    assert read_votes(write_chaosnli(tmp_path)) == [[60, 0, 30], [60, 10, 30], [60, 10, 30]]


def test_label_counter_next_to_the_sentences_gives_the_votes(tmp_path: Path):
    row = {"majority_label": "e", "premise": "A", "hypothesis": "B", "label_counter": {"e": 3, "n": 1, "c": 0}}
    assert read_votes(write_jsonl(tmp_path / "set.jsonl", [row])) == [[3, 0, 1]]


def test_annotator_labels_give_the_votes_of_multinli(tmp_path: Path):
    assert read_votes(write_multinli(tmp_path)) == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_set_without_annotators_has_no_votes(tmp_path: Path):
    assert "votes" not in load_evaluation_set(str(write_esnli(tmp_path))).pairs.column_names


@pytest.mark.parametrize("missing", ["", None], ids=["empty cell", "null"])
def test_label_columns_of_snli_give_the_votes(missing: str | None, tmp_path: Path):
    row = SENTENCES | {f"label{number}": "neutral" for number in range(1, 5)} | {"label5": missing}
    if missing is None:
        path = write_jsonl(tmp_path / "set.jsonl", [row])
    else:
        path = write_table(tmp_path / "set.txt", [row], delimiter="\t")
    assert read_votes(path) == [[0, 0, 4]]


def test_votes_of_snli_equal_the_counted_annotator_labels(corpus: Path):
    rows = [json.loads(line) for line in (corpus / "snli_1.0_test.jsonl").read_text().splitlines()]
    expected = [
        [row["annotator_labels"].count(label) for label in D2L_LABELS] for row in rows if row["gold_label"] != "-"
    ]
    assert read_votes(corpus, split="test") == expected


@pytest.mark.parametrize(
    "votes",
    [
        {"annotator_labels": ["yes", "N", "c", "other"]},
        {"label_counter": {"yes": 1, "neutral": 1, "contradiction": 1, "o": 5}},
    ],
    ids=lambda votes: next(iter(votes)),
)
def test_declared_label_names_apply_to_votes(votes: dict, tmp_path: Path):
    row = {"premise": "A", "hypothesis": "B", "label": "yes", **votes}
    path = write_jsonl(tmp_path / "set.jsonl", [row])
    assert read_votes(path, label_mapping={"yes": "entailment"}) == [[1, 1, 1]]


def test_evaluation_split_equals_the_split_of_load_snli(corpus: Path):
    found = load_evaluation_set(str(corpus), split="validation")
    snli = load_snli(str(corpus), splits=["validation"])
    assert found.pairs.select_columns(["premise", "hypothesis", "label"])[:] == snli.splits["validation"][:]
    assert found.num_dropped == snli.num_dropped["validation"]


def test_split_with_a_custom_name_is_found_by_file_name(tmp_path: Path):
    write_multinli(tmp_path).with_name("multinli_1.0_dev_mismatched.jsonl").write_bytes(b"{}")
    assert len(load_evaluation_set(str(tmp_path), split="dev_matched").pairs) == 3


@pytest.mark.parametrize(
    "names",
    [
        ("test_r1-00000-of-00001", "test_r2-00000-of-00001"),
        ("one/test-00000-of-00001", "two/test-00000-of-00001"),
    ],
    ids=["names", "folders"],
)
def test_shards_of_two_different_sets_are_refused(names: tuple[str, str], tmp_path: Path):
    for name in names:
        target = tmp_path / "sets" / f"{name}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(tmp_path).rename(target)
    first, second = (Path(name).name for name in names)
    with pytest.raises(BertSnliError, match=f"both {first}.* and {second}.* look like the test split"):
        load_evaluation_set(str(tmp_path / "sets"))


def test_training_set_of_esnli_in_two_files_is_one_split(tmp_path: Path):
    for number in (1, 2):
        write_esnli(tmp_path).rename(tmp_path / f"esnli_train_{number}.csv")
    assert len(load_evaluation_set(str(tmp_path), split="train").pairs) == 2 * len(LABELS)


def test_unbalanced_quotes_in_a_tsv_are_text(tmp_path: Path):
    sentences = ['"Yes, she said', "It's 5\" long.", '"Quoted"', "plain"]
    path = tmp_path / "dev.tsv"
    rows = [f"{sentence}\tB\tneutral\n" for sentence in sentences]
    path.write_text("sentence1\tsentence2\tgold_label\n" + "".join(rows))
    assert load_evaluation_set(str(path)).pairs["premise"][:] == sentences


def test_cells_that_look_like_numbers_or_missing_values_stay_text(tmp_path: Path):
    rows = [{"premise": "1.10", "hypothesis": "007", "label": number} for number in (0, 1, 2)] * 2000
    rows.append({"premise": "n/a", "hypothesis": "None", "label": "-"})
    path = write_table(tmp_path / "set[1].csv", rows)
    found = load_evaluation_set(str(path), label_mapping={"0": "entailment", "1": "neutral", "2": "contradiction"})
    assert (len(found.pairs), found.num_dropped) == (6000, 1)
    assert (found.pairs["premise"][0], found.pairs["hypothesis"][0]) == ("1.10", "007")


def test_missing_sentence_error_names_the_row(tmp_path: Path):
    row = {"premise": "A", "hypothesis": "B", "label": "neutral"}
    rows = [row, {**row, "premise": None}]
    with pytest.raises(BertSnliError, match="row 2: no premise; correct or remove the row"):
        load_evaluation_set(str(write_jsonl(tmp_path / "none.jsonl", rows)))


DECLARED_COLUMNS = {"premise": "text", "hypothesis": "claim", "label": "class"}


@pytest.fixture
def custom_table(tmp_path: Path) -> Path:
    """A table with column and label names that no published set has."""
    rows = [{"text": PREMISE, "claim": HYPOTHESIS, "class": number} for number in (0, 1, 2, 9)]
    return write_table(tmp_path / "custom.csv", rows)


def test_columns_and_labels_can_be_declared(custom_table: Path):
    names = {"0": "entailment", "1": "neutral", "2": "contradiction", "9": "-"}
    found = load_evaluation_set(str(custom_table), columns=DECLARED_COLUMNS, label_mapping=names)
    assert [found.labels[row["label"]] for row in found.pairs] == LABELS
    assert found.num_dropped == 1


def test_undeclared_label_is_refused(custom_table: Path):
    with pytest.raises(
        BertSnliError, match=r"the labels 0, 1, 2, 9 are numbers without names; .* or set labels 0=NAME 1=NAME"
    ):
        load_evaluation_set(str(custom_table), columns=DECLARED_COLUMNS)


def test_missing_declared_column_is_refused(custom_table: Path):
    with pytest.raises(BertSnliError, match=r"no column words \(found: 'text', 'claim', 'class'\)"):
        load_evaluation_set(str(custom_table), columns={**DECLARED_COLUMNS, "premise": "words"})


def test_split_of_a_single_file_is_refused(tmp_path: Path):
    with pytest.raises(BertSnliError, match="^split test: .* is one file"):
        load_evaluation_set(str(write_esnli(tmp_path)), split="test")


def test_anli_is_read_without_options(tmp_path: Path):
    rows = [{"uid": "1", "context": PREMISE, "hypothesis": HYPOTHESIS, "label": label[0]} for label in LABELS]
    found = load_evaluation_set(str(write_jsonl(tmp_path / "test.jsonl", rows)))
    assert found.pairs["premise"][:] == [PREMISE] * 3
    assert [found.labels[number] for number in found.pairs["label"]] == LABELS
