"""How data sets of natural language inference name their columns and labels; one table for each.

SNLI and MultiNLI, HANS (McCoy et al., 2019), Breaking-NLI (Glockner et al., 2018) and counterfactually-augmented NLI
(Kaushik et al., 2020) share Stanford's names; e-SNLI (Camburu et al., 2018), ChaosNLI (Nie et al., 2020) and the hub
have their own. Labels are mapped by name, never by number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from bert_snli.errors import BertSnliError
from bert_snli.modeling.labels import D2L_LABELS, NON_ENTAILMENT, TWO_WAY_LABELS

COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
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
# Where single annotators' labels stand: in a list, in five columns, or counted.
ANNOTATORS_LIST = "annotator_labels"
ANNOTATORS_COLUMNS = ("label1", "label2", "label3", "label4", "label5")
ANNOTATORS_COUNTS = "label_counter"  # of letters; in three columns once `datasets` has flattened it


def find_columns(
    rows: Dataset, text_source: str, declared: Mapping[str, str], where: str, remedy: str
) -> tuple[str, str, str]:
    """The columns of premise, hypothesis and label: those `declared`, else those of a known layout.

    Raises:
        BertSnliError: one is not there.
    """
    known = {**COLUMNS[text_source], "label": LABEL_COLUMNS}
    if text_source == "parse":
        remedy = "use --text_source raw"
    found = []
    for role, names in known.items():
        names = (declared[role],) if role in declared else names
        there = [name for name in names if name in rows.column_names]
        if not there:
            has = f"it has {_some(rows)}" + f"; {remedy}" * (role not in declared)
            raise BertSnliError(f"{where}: no column {' or '.join(names)}; {has}")
        found.append(there[0])
    return found[0], found[1], found[2]


def _some(rows: Dataset) -> str:
    return ", ".join(rows.column_names[:12]) + ", ..." * (len(rows.column_names) > 12)


def name_labels(rows: Dataset, column: str, declared: Mapping[str, str]) -> dict[Any, str]:
    """Each label as it stands in `column` → its name here; `NO_GOLD_LABEL` where there is none."""
    feature = rows.features[column]
    if isinstance(feature, ClassLabel):
        return {None: NO_GOLD_LABEL, -1: NO_GOLD_LABEL} | {
            number: _name(name, declared) for number, name in enumerate(feature.names)
        }
    return {None: NO_GOLD_LABEL} | {
        value: _name(str(value), declared) for value in rows.unique(column) if value is not None
    }


def _name(found: str, declared: Mapping[str, str]) -> str:
    if found in declared:
        return declared[found]
    return LABEL_NAMES.get(found.lower(), found.lower())


def number_labels(
    rows: Dataset, column: str, named: Mapping[Any, str], labels: Sequence[str], remedy: str, where: str
) -> dict[Any, int | None]:
    """Each label as it stands in `column` → its number in `labels`, None where there is no gold label.

    Raises:
        BertSnliError: a label that is none of `labels`, with its row.
    """
    for value, name in named.items():
        if name != NO_GOLD_LABEL and name not in labels:
            row = next((i for i, found in enumerate(rows[column]) if found == value), 0)
            raise BertSnliError(
                f"{where}: label {name!r} in row {row + 1} is none of {', '.join(labels)}; {remedy.format(name=name)}"
            )
    return {value: labels.index(name) if name in labels else None for value, name in named.items()}


def is_two_way(names: Sequence[str]) -> bool:
    """Whether a set tells entailment from all else, and no more."""
    return NON_ENTAILMENT in names and set(names) <= {*TWO_WAY_LABELS, NO_GOLD_LABEL}


def annotator_columns(rows: Dataset) -> list[str]:
    """The columns with single annotators' labels; none if the set has none."""
    counts = [name for name in rows.column_names if name.partition(".")[0] == ANNOTATORS_COUNTS]
    for columns in ([ANNOTATORS_LIST], list(ANNOTATORS_COLUMNS), counts):
        if set(columns) <= set(rows.column_names):
            return columns
    return []


def count_votes(row: Mapping[str, Any], declared: Mapping[str, str]) -> list[int]:
    """How many annotators chose each of `D2L_LABELS`, from a row's annotator columns; other labels do not count."""
    counted: Counter[str] = Counter()
    for column, found in row.items():
        if isinstance(found, str):
            counted[_name(found, declared)] += 1
        elif isinstance(found, list):
            counted.update(_name(str(label), declared) for label in found)
        elif isinstance(found, dict):
            for label, count in found.items():
                counted[_name(label, declared)] += count or 0
        elif found is not None:
            counted[_name(column.rpartition(".")[2], declared)] += found
    return [counted[label] for label in D2L_LABELS]
