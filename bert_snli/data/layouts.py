"""Names of columns and labels in published data sets of natural language inference.

SNLI, MultiNLI, HANS, Breaking-NLI and counterfactually-augmented NLI share Stanford's names; ANLI, e-SNLI, ChaosNLI
and the Hub have their own. Labels are mapped by name, never by number.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from bert_snli.data.pair_files import check_roles, no_column_error
from bert_snli.errors import BertSnliError
from bert_snli.modeling.labels import D2L_LABELS, NON_ENTAILMENT

TEXT_COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "raw": {
        "premise": ("sentence1", "premise", "Sentence1", "example.premise", "context"),
        "hypothesis": ("sentence2", "hypothesis", "Sentence2", "example.hypothesis"),
    },
    "parse": {"premise": ("sentence1_binary_parse",), "hypothesis": ("sentence2_binary_parse",)},
}
LABEL_COLUMNS = ("gold_label", "label", "majority_label")
NO_GOLD_LABEL = "-"
MAX_LABELS = 100  # more are probably not labels
WITHOUT_GOLD_LABEL = ("-", "-1", "")
LABEL_NAMES = {
    "e": "entailment",
    "c": "contradiction",
    "n": "neutral",
    "not_entailment": NON_ENTAILMENT,
    "non_entailment": NON_ENTAILMENT,
}
# The labels of single annotators: a list, counts, or five columns.
ANNOTATOR_COLUMNS = (["annotator_labels"], ["label_counter"], ["label1", "label2", "label3", "label4", "label5"])


def find_columns(rows: Dataset, text_source: str, declared: Mapping[str, str], where: str) -> list[str]:
    """Find the columns of premise, hypothesis and label. Columns in `declared` override the known names."""
    check_roles(declared)
    columns = []
    for role, known in {**TEXT_COLUMNS[text_source], "label": LABEL_COLUMNS}.items():
        names = (declared[role],) if role in declared else known
        found = [name for name in names if name in rows.column_names]
        if not found:
            if text_source == "parse":
                raise no_column_error(where, names, rows.column_names, "use text_source raw")
            remedy = f"name the columns premise, hypothesis, label, or set columns {role}=NAME"
            raise no_column_error(where, [declared.get(role, role)], rows.column_names, remedy)
        columns.append(found[0])
    return columns


def name_labels(
    rows: Dataset, column: str, declared: Mapping[str, str], labels: Sequence[str] | None
) -> dict[Any, str]:
    """Map each value of `column`, in order, to the name of its label, or to `NO_GOLD_LABEL`.

    Abbreviations such as "n" for neutral are only read if the classifier's `labels` (None: the data) are those of NLI.
    """
    feature = rows.features[column]
    if isinstance(feature, ClassLabel):
        values: dict[Any, str] = dict(enumerate(feature.names))
    else:
        values = {value: str(value) for value in rows.unique(column) if value not in (None, -1)}
        values |= {value: str(int(value)) for value in values if isinstance(value, float) and value.is_integer()}
        values = dict(sorted(values.items(), key=lambda item: (len(item[1]) * item[1].isdecimal(), item[1])))
    names = {value: label_name(name, declared) for value, name in values.items()}
    if not set(names.values() if labels is None else labels) <= {*D2L_LABELS, NON_ENTAILMENT, NO_GOLD_LABEL}:
        names = {value: label_name(name, declared, {}) for value, name in values.items()}
    return {-1: NO_GOLD_LABEL} | names | {None: NO_GOLD_LABEL}


def label_name(name: str, declared: Mapping[str, str], known: Mapping[str, str] = LABEL_NAMES) -> str:
    """Return the name that bert-snli uses for a label of a data set, in lower case."""
    if name in declared:
        return declared[name].lower()
    return NO_GOLD_LABEL if name in WITHOUT_GOLD_LABEL else known.get(name.lower(), name.lower())


def choose_labels(names: Iterable[str], where: str) -> list[str]:
    """Return the labels of a new classifier, in the order of `names`. For NLI, they are always `D2L_LABELS`."""
    found = [name for name in dict.fromkeys(names) if name != NO_GOLD_LABEL]
    is_nli = set(found) <= set(D2L_LABELS) or "contradiction" in found
    if is_nli:
        return list(D2L_LABELS)
    if numbers := [name for name in found if name.isdecimal()]:
        what = f"the labels {', '.join(numbers[:5])} are numbers without names"
        mapping = " ".join(f"{number}=NAME" for number in numbers[:5])
        raise BertSnliError(f"{where}: {what}; set labels {mapping}, or correct the column")
    if len(found) == 1:
        raise BertSnliError(f"{where}: has only the label {found[0]}; give data with two or more labels")
    if len(found) > MAX_LABELS:
        what = f"has {len(found):,} different labels"
        raise BertSnliError(f"{where}: {what}; choose another column with columns label=NAME")
    return found


def number_labels(names: Mapping[Any, str], labels: Sequence[str], where: str) -> dict[Any, int | None]:
    """Map each value to the number of its label in `labels`, or to None without a gold label."""
    if unknown := sorted({name for name in names.values() if name not in (NO_GOLD_LABEL, *labels)}):
        what = f"label {unknown[0]!r} is unknown"
        if unknown[0].isdecimal():
            unknown = [name for name in unknown if name.isdecimal()]
            what = f"the labels {', '.join(unknown[:5])} are numbers without names"
        remedy = f"write {', '.join(labels)} or - (no gold label)"
        mapping = " ".join(f"{name}=NAME" for name in unknown[:5])
        raise BertSnliError(f"{where}: {what}; {remedy}, or set labels {mapping}")
    return {value: None if name == NO_GOLD_LABEL else labels.index(name) for value, name in names.items()}


def count_votes(rows: Dataset, declared: Mapping[str, str]) -> list[list[int]]:
    """Count the annotators that chose each of `D2L_LABELS`, for each row. Without such columns, return []."""
    columns = next((names for names in ANNOTATOR_COLUMNS if set(names) <= set(rows.column_names)), [])
    votes_of_rows = []
    for row in rows.select_columns(columns) if columns else ():
        votes: Counter[str] = Counter()
        for value in row.values():
            counts = value if isinstance(value, dict) else Counter(value if isinstance(value, list) else [value])
            for label, count in counts.items():
                votes[label_name(str(label), declared)] += count or 0
        votes_of_rows.append([votes[label] for label in D2L_LABELS])
    return votes_of_rows
