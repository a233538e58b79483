"""SNLI (Bowman et al., 2015) and its like, from wherever they lie, as `datasets` of premise, hypothesis and label.

Labels are mapped by name, never by number. `text_source` says which sentences are read: `raw`, as people typed
them, or `parse`, the leaves of the binary parse, which is what the book reads (d2l 15.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from bert_snli.choices import HUB_ID
from bert_snli.data.layouts import (
    NO_GOLD_LABEL,
    annotator_columns,
    count_votes,
    find_columns,
    is_two_way,
    name_labels,
    number_labels,
)
from bert_snli.data.sources import READERS, SPLITS, is_data_file, read_files, read_split
from bert_snli.errors import BertSnliError
from bert_snli.modeling.labels import D2L_LABELS, TWO_WAY_LABELS

RENAME = f"rename it, or write {NO_GOLD_LABEL!r} for a pair without a gold label"
NAME_COLUMNS = "name them premise, hypothesis and label"
SCORES = "scores"  # as `bert-snli predict` writes them
DECLARE_COLUMNS = "say where they stand: --columns premise=NAME hypothesis=NAME label=NAME"
DECLARE = "say what it means: --labels {name}=LABEL, or {name}=- for no gold label"


@dataclass(frozen=True)
class SNLI:
    """The splits asked for, and how many rows of each had no gold label and were dropped."""

    splits: DatasetDict
    num_dropped: dict[str, int]


def load_snli(
    dataset_name_or_path: str = HUB_ID,
    *,
    splits: Sequence[str] = tuple(SPLITS),
    text_source: str = "raw",
    labels: Sequence[str] = D2L_LABELS,
) -> SNLI:
    """Load `splits` of SNLI, with columns `premise`, `hypothesis` and `label` (a `ClassLabel`).

    Args:
        dataset_name_or_path: a hub id, Stanford's zip, a folder of its jsonl or txt files or of parquet files, or
            `"sample"`, the generated corpus of `bert_snli.data.sample`.
        splits: of `train`, `validation`, `test`.
        text_source: `raw` or `parse`.
        labels: the three labels in the order in which they are numbered.

    Returns:
        The splits, and how many rows of each had no gold label and were dropped.

    Raises:
        BertSnliError: nothing there, a split or column that is missing, a label outside the set, no labelled row.
    """
    loaded, num_dropped = DatasetDict(), {}
    for split in splits:
        rows, where = read_split(dataset_name_or_path, split)
        premise, hypothesis, label = find_columns(rows, text_source, {}, where, "give a set in SNLI's layout")
        numbers = number_labels(rows, label, name_labels(rows, label, {}), labels, RENAME, where)
        loaded[split] = _keep_labelled(rows, (premise, hypothesis, label), numbers, labels, text_source, where)
        num_dropped[split] = len(rows) - len(loaded[split])
    return SNLI(loaded, num_dropped)


def load_train_file(path: Path, *, text_source: str = "raw", labels: Sequence[str] = D2L_LABELS) -> tuple[Dataset, int]:
    """Pairs of one file to train on, as `load_snli` gives them, and how many rows had no gold label and were dropped.

    Where the file has `scores`, each label's probability by its name as `bert-snli predict` writes them, `label` is a
    list of them in the order of `labels`: what a teacher says of the pair.

    Raises:
        BertSnliError: as `load_snli`; scores that are no probabilities of `labels`.
    """
    where = f"--train_file {path}"
    if not is_data_file(str(path)):
        what = "not a file of a kind that is read" if path.exists() else "no such file"
        raise BertSnliError(f"{where}: {what}; give {', '.join(READERS)} with premise, hypothesis and label or scores")
    rows = read_files([path], "train")
    if SCORES not in rows.column_names:
        premise, hypothesis, label = find_columns(rows, text_source, {}, where, NAME_COLUMNS)
        numbers = number_labels(rows, label, name_labels(rows, label, {}), labels, RENAME, where)
        pairs = _keep_labelled(rows, (premise, hypothesis, label), numbers, labels, text_source, where)
        return pairs, len(rows) - len(pairs)
    columns = find_columns(rows, text_source, {"label": SCORES}, where, NAME_COLUMNS)
    return _scored(rows, columns, labels, text_source, where), 0


@dataclass(frozen=True)
class EvaluationSet:
    """Pairs to measure a model on: `premise`, `hypothesis`, `label` and, where annotators' labels are there, `votes`.

    `votes` counts the labels in the order of `D2L_LABELS`. `label` is a `ClassLabel` of the three labels, or of
    `TWO_WAY_LABELS`. `name` is the split's or the file's.
    """

    name: str
    pairs: Dataset
    num_dropped: int

    @property
    def labels(self) -> list[str]:
        """The names of the labels, in the order of their numbers."""
        return list(self.pairs.features["label"].names)


def load_evaluation_set(
    dataset_name_or_path: str = HUB_ID,
    *,
    split: str | None = None,
    text_source: str = "raw",
    labels: Sequence[str] = D2L_LABELS,
    columns: Mapping[str, str] | None = None,
    label_names: Mapping[str, str] | None = None,
) -> EvaluationSet:
    """Load a split of any source that `load_snli` takes, or one .jsonl, .txt, .tsv, .csv or .parquet file.

    Args:
        split: `test` if it is not given; a file has none.
        columns: what the set calls `premise`, `hypothesis` and `label`, where `layouts.COLUMNS` does not know it.
        label_names: what the set calls a label → our name for it, where `layouts.LABEL_NAMES` does not know it.

    Raises:
        BertSnliError: as `load_snli`; a split of a file.
    """
    columns, label_names = columns or {}, label_names or {}
    if is_data_file(dataset_name_or_path):
        if split is not None:
            raise BertSnliError(f"--split {split}: {dataset_name_or_path} is one file; leave the option out")
        path = Path(dataset_name_or_path)
        name, where, rows = path.stem, str(path), read_files([path])
    else:
        name = split or "test"
        rows, where = read_split(dataset_name_or_path, name)
    rows = rows.flatten()  # ChaosNLI nests its sentences
    names = find_columns(rows, text_source, columns, where, DECLARE_COLUMNS)
    named = name_labels(rows, names[2], label_names)
    labels = TWO_WAY_LABELS if is_two_way(list(named.values())) else labels
    numbers = number_labels(rows, names[2], named, labels, DECLARE, where)
    pairs = _keep_labelled(rows, names, numbers, labels, text_source, where, annotator_columns(rows), label_names)
    return EvaluationSet(name, pairs, len(rows) - len(pairs))


def _keep_labelled(
    rows: Dataset,
    columns: tuple[str, str, str],
    numbers: Mapping,
    labels: Sequence[str],
    text_source: str,
    where: str,
    annotators: Sequence[str] = (),
    label_names: Mapping[str, str] | None = None,
) -> Dataset:
    """Rows with a gold label, in the columns that `load_snli` and `load_evaluation_set` promise."""
    premise, hypothesis, label = columns
    read = read_parse if text_source == "parse" else str
    features = {"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=list(labels))}
    if annotators:
        features["votes"] = List(Value("int32"))

    def keep(batch: Mapping[str, list], places: list[int]) -> dict[str, list]:
        kept = [i for i, value in enumerate(batch[label]) if numbers[value] is not None]
        for column in (premise, hypothesis):
            for i in kept:
                if batch[column][i] is None:
                    raise BertSnliError(f"{where}: row {places[i] + 1} has no {column}; leave the row out or mend it")
        normal = {
            "premise": [read(batch[premise][i]) for i in kept],
            "hypothesis": [read(batch[hypothesis][i]) for i in kept],
            "label": [numbers[batch[label][i]] for i in kept],
        }
        if annotators:
            normal["votes"] = [
                count_votes({name: batch[name][i] for name in annotators}, label_names or {}) for i in kept
            ]
        return normal

    taken = list(dict.fromkeys([*columns, *annotators]))
    normal = rows.select_columns(taken).map(
        keep, batched=True, with_indices=True, remove_columns=taken, features=Features(features), desc="Reading labels"
    )
    if len(normal) == 0:
        raise BertSnliError(f"{where}: no pair with a gold label; give a set that has some")
    return normal


def _scored(
    rows: Dataset, columns: tuple[str, str, str], labels: Sequence[str], text_source: str, where: str
) -> Dataset:
    """Rows in the columns that `load_train_file` promises, `label` being probabilities."""
    premise, hypothesis, scores = columns
    read = read_parse if text_source == "parse" else str
    features = {"premise": Value("string"), "hypothesis": Value("string"), "label": List(Value("float32"))}

    def normal(batch: Mapping[str, list], places: list[int]) -> dict[str, list]:
        for place, row in zip(places, zip(*(batch[column] for column in columns), strict=True), strict=True):
            if None in row or not are_probabilities(row[2], labels):
                what = f"give premise, hypothesis, and scores of {', '.join(labels)} that add up to 1"
                raise BertSnliError(f"{where}: row {place + 1}: {what}")
        return {
            "premise": list(map(read, batch[premise])),
            "hypothesis": list(map(read, batch[hypothesis])),
            "label": [[row[label] for label in labels] for row in batch[scores]],
        }

    return rows.select_columns(list(columns)).map(
        normal, batched=True, with_indices=True, remove_columns=list(columns), features=Features(features),
        desc="Reading scores",
    )  # fmt: skip


def are_probabilities(scores: object, labels: Sequence[str]) -> bool:
    """Whether these are the probabilities of `labels`, by name."""
    if not isinstance(scores, dict) or set(scores) != set(labels):
        return False
    values = list(scores.values())
    numbers = all(isinstance(value, float | int) and value >= 0 for value in values)
    return numbers and abs(sum(values) - 1) < 1e-3


def read_parse(binary_parse: str) -> str:
    """The leaves of a binary parse, joined by single spaces, as the book strips them (d2l 15.4)."""
    return " ".join(binary_parse.replace("(", "").replace(")", "").split())
