"""Sources of SNLI: zip archives, folders of JSON Lines, text and Parquet files, and the generated sample."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from functools import partial
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from bert_snli.data import sample
from bert_snli.data.sample import write_sample
from bert_snli.data.snli import load_snli, read_parse
from bert_snli.data.sources import _extract
from bert_snli.errors import BertSnliError
from bert_snli.modeling.labels import D2L_LABELS
from tests.support.snli_tables import write_tables

HUB_LABELS = ["entailment", "neutral", "contradiction"]
ROW = {"gold_label": "neutral", "sentence1": "A dog.", "sentence2": "A cat."}


def read_rows(corpus: Path, split: str = "train") -> list[dict]:
    return [json.loads(line) for line in (corpus / f"snli_1.0_{split}.jsonl").read_text().splitlines()]


def labelled_pairs(corpus: Path, split: str = "train") -> list[tuple[str, str, str]]:
    """Premise, hypothesis and label of the rows with a gold label."""
    rows = [row for row in read_rows(corpus, split) if row["gold_label"] != "-"]
    return [(row["sentence1"], row["sentence2"], row["gold_label"]) for row in rows]


def read_pairs(split: Dataset) -> list[tuple[str, str, str]]:
    names = split.features["label"].names
    return [(row["premise"], row["hypothesis"], names[row["label"]]) for row in split]


def test_wrong_text_source_and_a_split_that_is_no_list_are_refused(corpus: Path):
    for options in ({"text_source": "leaves"}, {"splits": "train"}):
        with pytest.raises(BertSnliError, match="^load_snli: .*; give text_source raw or parse, and a list of splits"):
            load_snli(str(corpus), **options)


def write_parquet(corpus: Path, folder: Path) -> Path:
    """Write the corpus in the format of `stanfordnlp/snli`: other label ids, −1 without a gold label."""
    features = Features(
        {"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=HUB_LABELS)}
    )
    for split, name in {"train": "train", "dev": "validation", "test": "test"}.items():
        rows = read_rows(corpus, split)
        columns = {
            "premise": [row["sentence1"] for row in rows],
            "hypothesis": [row["sentence2"] for row in rows],
            "label": [HUB_LABELS.index(row["gold_label"]) if row["gold_label"] != "-" else -1 for row in rows],
        }
        (folder / "plain_text").mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"plain_text/{name}-00000-of-00001.parquet")
    return folder


def write_zip(corpus: Path, path: Path) -> Path:
    """Write the corpus in the format of `snli_1.0.zip`, with the extra files that macOS adds."""
    tables = write_tables(corpus, path.parent / "tables")
    with zipfile.ZipFile(path, "w") as archive:
        for file in (*corpus.iterdir(), *tables.iterdir()):
            archive.write(file, f"snli_1.0/{file.name}")
            archive.writestr(f"__MACOSX/snli_1.0/._{file.name}", "metadata of macOS")
    return path


def write_jsonl(folder: Path, rows: list[dict]) -> Path:
    (folder / "snli_1.0_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("kind", ["zip", "jsonl", "txt", "parquet"])
def test_each_format_gives_the_same_pairs(kind: str, corpus: Path, tmp_path: Path):
    sources = {
        "zip": lambda: write_zip(corpus, tmp_path / "snli_1.0.zip"),
        "jsonl": lambda: corpus,
        "txt": lambda: write_tables(corpus, tmp_path / "txt"),
        "parquet": lambda: write_parquet(corpus, tmp_path / "hub"),
    }
    snli = load_snli(str(sources[kind]()))
    for split, name in {"train": "train", "validation": "dev", "test": "test"}.items():
        expected = labelled_pairs(corpus, name)
        assert read_pairs(snli.splits[split]) == expected
        assert snli.num_dropped[split] == len(read_rows(corpus, name)) - len(expected)
    assert snli.num_dropped["train"] > 0
    assert snli.splits["train"].features["label"].names == list(D2L_LABELS)


MEMORY_LABELS = ["neutral", "entailment", None, "contradiction"]


def make_dataset(labels: list, feature: ClassLabel | Value) -> DatasetDict:
    """Return a data set in memory whose rows are numbered, with another column and in another format."""
    features = Features({"id": Value("int64"), "premise": Value("string"), "hypothesis": Value("string")})
    numbers = [str(number) for number in range(len(labels))]
    columns = {"id": range(len(labels)), "premise": numbers, "hypothesis": numbers, "label": labels}
    dataset = Dataset.from_dict(columns, features=Features({**features, "label": feature}))
    return DatasetDict({"train": dataset, "extra": dataset.with_format("torch")})


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        (MEMORY_LABELS, Value("string")),
        (["neutral", "Entailment", "-", "contradiction"], Value("string")),
        ([1, 0, -1, 2], ClassLabel(names=HUB_LABELS)),
        ([0, 2, None, 1], ClassLabel(names=["neutral", "contradiction", "entailment"])),
        ([1, 2, -1, 0], Value("int64")),
        ([1, 2, None, 0], Value("int8")),
    ],
    ids=["names", "names-with-dash", "hub-order", "other-order", "numbers", "numbers-with-null"],
)
def test_dataset_in_memory_gives_labels_by_name(values: list, feature: ClassLabel | Value):
    labels = ["contradiction", "neutral", "entailment"]  # the order of the numbers
    snli = load_snli(make_dataset(values, feature), splits=["train", "extra"], labels=labels)
    for split in ("train", "extra"):
        pairs = snli.splits[split]
        assert pairs.column_names == ["premise", "hypothesis", "label"]
        assert pairs.features["label"].names == labels
        assert read_pairs(pairs) == [(str(i), str(i), name) for i, name in enumerate(MEMORY_LABELS) if name]
        assert snli.num_dropped[split] == 1


def test_dataset_in_memory_without_the_split_or_with_an_unknown_label_is_refused():
    dataset = make_dataset([0, 3], Value("int64"))
    with pytest.raises(BertSnliError, match="^dataset: is a Dataset, which has no splits"):
        load_snli(dataset["train"])
    with pytest.raises(BertSnliError, match=r"^dataset: no split 'test' \(found: train, extra\)"):
        load_snli(dataset, splits=["test"])
    with pytest.raises(
        BertSnliError, match=r"^dataset\['train'\]: the labels 3 are numbers without names; write entailment"
    ):
        load_snli(dataset, splits=["train"])


def test_label_ids_follow_the_given_order(corpus: Path):
    split = load_snli(str(corpus), splits=["test"], labels=HUB_LABELS).splits["test"]
    assert split.features["label"].names == HUB_LABELS
    assert read_pairs(split) == labelled_pairs(corpus, "test")


def test_parse_text_source_gives_the_tokens_of_the_binary_parses(corpus: Path):
    split = load_snli(str(corpus), splits=["test"], text_source="parse").splits["test"]
    rows = [row for row in read_rows(corpus, "test") if row["gold_label"] != "-"]
    for column, name in (("premise", "sentence1"), ("hypothesis", "sentence2")):
        tokens = [re.sub(r"[()]", "", row[f"{name}_binary_parse"]).split() for row in rows]
        assert [text.split() for text in split[column]] == tokens
    assert read_parse("( ( A dog ) ( runs . ) )") == "A dog runs ."


def test_sample_has_three_balanced_labels():
    snli = load_snli("sample")
    assert set(snli.splits) == {"train", "validation", "test"}
    for split in snli.splits.values():
        counts = [split["label"][:].count(label) for label in range(3)]
        assert counts[0] == counts[1] == counts[2] > 100


def test_cached_sample_is_not_used_after_the_generator_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder without a version in its name is not used either."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)

    def load(seed: int) -> list[tuple[str, str, str]]:
        generate = partial(write_sample, num_pairs={"test": 30}, seed=seed)
        monkeypatch.setattr(sample, "write_sample", generate)
        return read_pairs(load_snli("sample", splits=["test"]).splits["test"])

    unversioned = write_sample(tmp_path / "bert_snli" / "sample", num_pairs={"test": 30}, seed=1)
    first = load(seed=0)
    assert first != read_pairs(load_snli(str(unversioned), splits=["test"]).splits["test"])
    assert load(seed=2) == first  # cached
    changed = tmp_path / "sample.py"
    changed.write_text(Path(sample.__file__).read_text() + "# a change\n")
    monkeypatch.setattr(sample, "__file__", str(changed))
    assert load(seed=2) != first


def test_text_that_looks_like_a_missing_value_is_kept(tmp_path: Path):
    texts = ["None", "n/a", "NaN", "null", 'a "quoted word', ""]
    with (tmp_path / "snli_1.0_test.txt").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerow(["gold_label", "sentence1", "sentence2"])
        writer.writerows(["neutral", text, text] for text in texts)
    assert load_snli(str(tmp_path), splits=["test"]).splits["test"]["premise"][:] == texts


@pytest.mark.parametrize(
    ("rows", "text_source", "message"),
    [
        ([ROW, {**ROW, "gold_label": "maybe"}], "raw", r"label 'maybe' is unknown; write entailment, contradiction"),
        ([{**ROW, "gold_label": "-"}], "raw", "no row has a gold label"),
        ([ROW], "parse", r"no column sentence1_binary_parse \(found: .*\); use text_source raw"),
        ([{"text": "A dog."}], "raw", "no column premise"),
    ],
)
def test_invalid_row_error_names_the_file(rows: list[dict], text_source: str, message: str, tmp_path: Path):
    with pytest.raises(BertSnliError, match=message) as caught:
        load_snli(str(write_jsonl(tmp_path, rows)), splits=["test"], text_source=text_source)
    assert "snli_1.0_test.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("snli_1.0_test.jsonl", b'{"gold_label": "neu', "line 1 is not JSON (Unterminated string"),
        ("snli_1.0_test.jsonl", b"", "snli_1.0_test.jsonl"),
        ("snli_1.0_test.parquet", b"PAR1 without data", "cannot be read as .parquet"),
        ("notes.md", b"# notes", "no .jsonl, .txt, .tsv, .csv, .parquet file of the test split"),
    ],
)
def test_damaged_or_missing_file_error_names_the_cause(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BertSnliError, match=re.escape(message)):
        load_snli(str(tmp_path), splits=["test"])


@pytest.mark.parametrize(
    "name", ["nowhere/snli_1.0.zip", "./nowhere", "data.parquet", "tests/nowhere", "no-such/dataset"]
)
def test_missing_source_error_names_the_parameter(name: str):
    with pytest.raises(BertSnliError, match=f"^dataset_name_or_path {name}: "):
        load_snli(name, splits=["test"])


def test_zip_error_reports_a_checksum_mismatch(tmp_path: Path):
    (tmp_path / "damaged").mkdir()
    path = write_zip(write_jsonl(tmp_path / "damaged", [ROW]), tmp_path / "snli_1.0.zip")
    path.write_bytes(path.read_bytes().replace(b"A dog.", b"A cog."))
    with pytest.raises(BertSnliError, match="snli_1.0.zip: damaged"):
        load_snli(str(path), splits=["test"])


def test_zip_error_reports_damaged_compressed_data(tmp_path: Path):
    path = tmp_path / "snli_1.0.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("snli_1.0_test.jsonl", json.dumps({**ROW, "sentence1": "A bird. " * 500}))
    content = bytearray(path.read_bytes())
    content[52:60] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(BertSnliError, match="snli_1.0.zip: damaged"):
        load_snli(str(path), splits=["test"])


def test_all_shards_of_a_split_are_read(corpus: Path, tmp_path: Path):
    folder = write_parquet(corpus, tmp_path / "hub") / "plain_text"
    (folder / "test-00000-of-00001.parquet").rename(folder / "test-00000-of-00002.parquet")
    (folder / "validation-00000-of-00001.parquet").rename(folder / "test-00001-of-00002.parquet")
    expected = labelled_pairs(corpus, "test") + labelled_pairs(corpus, "dev")
    with zipfile.ZipFile(tmp_path / "hub.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    for source in (tmp_path / "hub", tmp_path / "hub.zip"):
        assert read_pairs(load_snli(str(source), splits=["test"]).splits["test"]) == expected


def test_two_files_that_are_not_shards_of_a_split_are_refused(tmp_path: Path):
    for name in ("other_test.parquet", "test-00000-of-00002.parquet"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(BertSnliError, match="both other_test.parquet and test-00000-of-00002.parquet"):
        load_snli(str(tmp_path), splits=["test"])


def test_archives_with_equal_members_are_extracted_separately(corpus: Path, tmp_path: Path):
    """An attacker can make an archive whose members have the names, sizes and checksums of another archive's."""
    original = write_zip(corpus, tmp_path / "original.zip")
    copy = tmp_path / "copy.zip"
    copy.write_bytes(original.read_bytes())
    (first,), (second,) = (_extract(archive, "test") for archive in (original, copy))
    assert first != second and first.read_bytes() == second.read_bytes()


def test_hub_parquet_files_equal_the_stanford_zip(snli_zip: Path, snli_parquet: Path):
    stanford, hub = (load_snli(str(source), splits=["test"]) for source in (snli_zip, snli_parquet))
    assert stanford.num_dropped == hub.num_dropped == {"test": 176}
    assert read_pairs(stanford.splits["test"]) == read_pairs(hub.splits["test"])
