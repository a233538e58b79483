"""Names of columns and labels in published data sets of natural language inference.

SNLI and MultiNLI, HANS (McCoy et al., 2019), Breaking-NLI (Glockner et al., 2018) and counterfactually-augmented NLI
(Kaushik et al., 2020) share Stanford's names; e-SNLI (Camburu et al., 2018), ChaosNLI (Nie et al., 2020) and the Hub
have their own. Labels are mapped by name, never by number.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from datasets import ClassLabel, Dataset

from bert_snli.errors import BertSnliError
from bert_snli.modeling.labels import D2L_LABELS, NON_ENTAILMENT, TWO_WAY_LABELS

TEXT_COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "raw": {
        "premise": ("sentence1", "premise", "Sentence1", "example.premise"),
        "hypothesis": ("sentence2", "hypothesis", "Sentence2", "example.hypothesis"),
    },
    "parse": {"premise": ("sentence1_binary_parse",), "hypothesis": ("sentence2_binary_parse",)},
}
LABEL_COLUMNS = ("gold_label", "label", "majority_label")
NO_GOLD_LABEL = "-"
LABEL_NAMES = {
    "e": "entailment",
    "c": "contradiction",
    "n": "neutral",
    "not_entailment": NON_ENTAILMENT,
    "non_entailment": NON_ENTAILMENT,
    "-1": NO_GOLD_LABEL,
    "": NO_GOLD_LABEL,
}
# The labels of single annotators: a list, five columns, or counts.
ANNOTATOR_LIST = "annotator_labels"
ANNOTATOR_COLUMNS = ("label1", "label2", "label3", "label4", "label5")
ANNOTATOR_COUNTS = "label_counter"  # three columns after `Dataset.flatten`


class PairColumns(NamedTuple):
    """Names of the columns of a data set."""

    premise: str
    hypothesis: str
    label: str


def find_columns(rows: Dataset, text_source: str, declared: Mapping[str, str], where: str, remedy: str) -> PairColumns:
    """Find the columns of premise, hypothesis and label: those in `declared`, else those of a known layout."""
    columns = {}
    for role, known in {**TEXT_COLUMNS[text_source], "label": LABEL_COLUMNS}.items():
        names = (declared[role],) if role in declared else known
        columns[role] = next((name for name in names if name in rows.column_names), "")
        if not columns[role]:
            has = ", ".join(rows.column_names[:12]) + ", ..." * (len(rows.column_names) > 12)
            remedy = "use text_source raw" if text_source == "parse" else remedy
            what_to_do = "" if role in declared else f"; {remedy}"
            raise BertSnliError(f"{where}: no column {' or '.join(names)}; it has {has}{what_to_do}")
    return PairColumns(**columns)


def name_labels(rows: Dataset, column: str, declared: Mapping[str, str]) -> dict[Any, str]:
    """Map each value of `column` to the name of its label; `NO_GOLD_LABEL` if there is none."""
    feature = rows.features[column]
    if isinstance(feature, ClassLabel):
        names = {number: label_name(name, declared) for number, name in enumerate(feature.names)}
        return {None: NO_GOLD_LABEL, -1: NO_GOLD_LABEL} | names
    values = [value for value in rows.unique(column) if value is not None]
    return {None: NO_GOLD_LABEL} | {value: label_name(str(value), declared) for value in values}


def label_name(name: str, declared: Mapping[str, str]) -> str:
    """Return our name of a label."""
    return declared.get(name) or LABEL_NAMES.get(name.lower(), name.lower())


def number_labels(
    rows: Dataset, column: str, labels: Sequence[str], declared: Mapping[str, str], where: str, remedy: str
) -> dict[Any, int | None]:
    """Map each value of `column` to its number in `labels`; None if there is no gold label."""
    names = name_labels(rows, column, declared)
    for value, name in names.items():
        if name != NO_GOLD_LABEL and name not in labels:
            row = next((i for i, other in enumerate(rows[column]) if other == value), 0)
            what = f"label {name!r} in row {row + 1} is none of {', '.join(labels)}"
            raise BertSnliError(f"{where}: {what}; {remedy.format(name=name)}")
    return {value: labels.index(name) if name in labels else None for value, name in names.items()}


def is_two_way(names: Collection[str]) -> bool:
    """Whether labels are entailment and non-entailment, as in HANS."""
    return NON_ENTAILMENT in names and set(names) <= {*TWO_WAY_LABELS, NO_GOLD_LABEL}


def annotator_columns(rows: Dataset) -> list[str]:
    """Return the columns with the labels of single annotators."""
    counts = [name for name in rows.column_names if name.partition(".")[0] == ANNOTATOR_COUNTS]
    for columns in ([ANNOTATOR_LIST], list(ANNOTATOR_COLUMNS), counts):
        if set(columns) <= set(rows.column_names):
            return columns
    return []


def count_votes(row: Mapping[str, Any], declared: Mapping[str, str]) -> list[int]:
    """Count the annotators that chose each of `D2L_LABELS`, from a row's annotator columns."""
    votes: Counter[str] = Counter()
    for column, value in row.items():
        if isinstance(value, str):
            votes[label_name(value, declared)] += 1
        elif isinstance(value, list):
            votes.update(label_name(str(label), declared) for label in value)
        elif isinstance(value, dict):
            for label, count in value.items():
                votes[label_name(label, declared)] += count or 0
        elif value is not None:  # a column of counts
            votes[label_name(column.rpartition(".")[2], declared)] += value
    return [votes[label] for label in D2L_LABELS]
