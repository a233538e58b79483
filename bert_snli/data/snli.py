"""Load SNLI (Bowman et al., 2015) and similar data sets with the columns premise, hypothesis and label.

Labels are mapped by name. `text_source` selects the text: `raw` sentences, or `parse`, the tokens of the binary parse
trees that d2l uses (section 15.4).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from bert_snli.choices import HUB_ID, TEXT_SOURCES
from bert_snli.data.layouts import choose_labels, count_votes, find_columns, name_labels, number_labels
from bert_snli.data.pair_files import find_problem
from bert_snli.data.sources import SPLITS, is_table, read_files, read_split, read_train_file, rows_of_split
from bert_snli.errors import BertSnliError
from bert_snli.modeling.labels import D2L_LABELS, NON_ENTAILMENT, TWO_WAY_LABELS

SCORES = "scores"  # the column that `bert-snli predict` writes


@dataclass(frozen=True)
class SNLI:
    """The splits of a data set, and for each split the number of dropped rows without a gold label."""

    splits: DatasetDict
    num_dropped: dict[str, int]


def load_snli(
    dataset_name_or_path: str | Mapping[str, Dataset] = HUB_ID,
    *,
    dataset_config_name: str | None = None,
    train_file: str | None = None,
    splits: Sequence[str] = tuple(SPLITS),
    text_source: str = "raw",
    columns: Mapping[str, str] | None = None,
    label_mapping: Mapping[str, str] | None = None,
    labels: Sequence[str] | None = D2L_LABELS,
) -> SNLI:
    """Load splits of SNLI or of other sentence pairs: columns `premise`, `hypothesis` and `label` (a `ClassLabel`).

    Args:
        dataset_name_or_path: a Hub id, Stanford's zip, a folder with a .jsonl, .txt, .tsv, .csv or .parquet file for
            each split, one such file, of which a tenth is the split `validation`, `"sample"` for the generated corpus
            of `bert_snli.data.sample`, or a `DatasetDict`.
        dataset_config_name: the configuration of a data set on the Hub, such as `rte` of `nyu-mll/glue`.
        train_file: a file that replaces the split `train`. If it has a column `scores` (see `bert-snli predict`), its
            `label` is the list of these probabilities in the order of `labels`.
        splits: some of `train`, `validation` and `test`, or other splits of the data set.
        text_source: `raw` or `parse`.
        columns: the data set's names of `premise`, `hypothesis` and `label`, if `layouts.py` does not know them.
        label_mapping: value of the label column → label, if the values are not names of `labels`. `-` means no gold
            label, as -1 and None do.
        labels: the labels in the order of their numbers; None takes those of the first split, see `choose_labels`. In
            a `DatasetDict`, labels may be numbers in this order.

    Returns:
        The splits without the rows that have no gold label, and the number of these rows.

    Raises:
        BertSnliError: the data, a split or a column is missing, a label is unknown, or no row has a gold label.

    Example:
        >>> snli = load_snli("quickstart/mini_snli", splits=["test"])
        >>> snli.splits["test"].column_names
        ['premise', 'hypothesis', 'label']
        >>> snli.splits["test"].features["label"].names
        ['entailment', 'contradiction', 'neutral']
    """
    if text_source not in TEXT_SOURCES or isinstance(splits, str):
        given = f"got text_source {text_source!r} and splits {splits!r}"
        raise BertSnliError(f"load_snli: {given}; give text_source raw or parse, and a list of splits")
    in_memory = isinstance(dataset_name_or_path, Mapping)
    numbers = {str(number): name for number, name in enumerate(labels or ())} if in_memory else {}
    layout = Layout(text_source, columns or {}, label_mapping or numbers)
    loaded, num_dropped = DatasetDict(), {}
    for split in splits:
        split_layout, selected = layout, None
        if train_file and split == "train":
            rows, where = read_train_file(Path(train_file)), f"train_file {train_file}"
            if SCORES in rows.column_names:
                split_layout = layout._replace(columns={"label": SCORES, **layout.columns})
        else:
            rows, where = read_split(dataset_name_or_path, split, dataset_config_name)
            selected = None if train_file else rows_of_split(rows, dataset_name_or_path, split)
        loaded[split], num_dropped[split], labels = read_pairs(rows, where, split_layout, labels, selected=selected)
    return SNLI(loaded, num_dropped)


@dataclass(frozen=True)
class EvaluationSet:
    """Pairs for evaluation. A column `votes` counts the labels of single annotators, in the order of `D2L_LABELS`."""

    name: str  # of the split or of the file
    pairs: Dataset  # `label` is a `ClassLabel` of the model's labels or of `TWO_WAY_LABELS`
    num_dropped: int  # rows without a gold label

    @property
    def labels(self) -> list[str]:
        """Return the names of the labels in the order of their numbers."""
        return list(self.pairs.features["label"].names)


def load_evaluation_set(
    dataset_name_or_path: str = HUB_ID,
    *,
    dataset_config_name: str | None = None,
    split: str | None = None,
    text_source: str = "raw",
    columns: Mapping[str, str] | None = None,
    label_mapping: Mapping[str, str] | None = None,
    labels: Sequence[str] = D2L_LABELS,
) -> EvaluationSet:
    """Load a split of any source that `load_snli` accepts, by default `test`, or all rows of one file.

    The arguments are those of `load_snli`. If `labels` are `D2L_LABELS` and the data set has `TWO_WAY_LABELS` (as in
    HANS), the labels of the result are `TWO_WAY_LABELS`.
    """
    path, label_mapping = Path(dataset_name_or_path), label_mapping or {}
    if split is None and is_table(path):
        name, where, rows = path.stem, str(path), read_files([path], "test")
    else:
        name = split or "test"
        rows, where = read_split(dataset_name_or_path, name, dataset_config_name)
    votes = count_votes(rows, label_mapping) if set(labels) == set(D2L_LABELS) else []
    selected = rows_of_split(rows, dataset_name_or_path, split) if split else None
    layout = Layout(text_source, columns or {}, label_mapping)
    # ChaosNLI nests its texts, so the columns are flattened.
    pairs, num_dropped, _ = read_pairs(
        rows.flatten(), where, layout, labels, selected=selected, votes=votes, allow_two_way=True
    )
    return EvaluationSet(name, pairs, num_dropped)


class Layout(NamedTuple):
    """How a data set stores pairs: `columns` and `label_mapping` are added to what `layouts.py` knows."""

    text_source: str
    columns: Mapping[str, str]
    label_mapping: Mapping[str, str]


def read_pairs(
    rows: Dataset,
    where: str,
    layout: Layout,
    labels: Sequence[str] | None,
    *,
    selected: Sequence[int] | None = None,
    votes: Sequence[list[int]] = (),
    allow_two_way: bool = False,
) -> tuple[Dataset, int, Sequence[str]]:
    """Read the rows with a gold label, of all rows or of the `selected` ones.

    Return the pairs, the number of dropped rows, and the labels, see `load_snli` and `load_evaluation_set`.
    """
    columns = find_columns(rows, layout.text_source, layout.columns, where)
    label_feature: ClassLabel | List
    read_label: Callable[..., int | list[float] | None]
    if columns[2] == SCORES:
        names_of_scores = rows.features[SCORES]
        known = sorted(names_of_scores) if isinstance(names_of_scores, dict) else D2L_LABELS
        labels = labels or choose_labels(known, where)
        label_feature, read_label = List(Value("float32")), partial(_order_scores, labels=labels)
    else:
        names = name_labels(rows, columns[2], layout.label_mapping, labels)
        if labels is None:
            labels = choose_labels(names.values(), where)
        elif allow_two_way and NON_ENTAILMENT in names.values() and set(labels) == set(D2L_LABELS):
            labels = TWO_WAY_LABELS
        label_feature, read_label = ClassLabel(names=list(labels)), number_labels(names, labels, where).get
    read_text = read_parse if layout.text_source == "parse" else str
    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": label_feature})
    if votes:
        features["votes"] = List(Value("int32"))

    def read_batch(*columns_and_numbers: list) -> dict[str, list]:
        pairs: dict[str, list] = {name: [] for name in features}
        for premise, hypothesis, value, index in zip(*columns_and_numbers, strict=True):
            number = row_numbers[index]
            try:
                if (label := read_label(value)) is None:
                    continue
                if problem := find_problem("premise", premise) or find_problem("hypothesis", hypothesis):
                    raise ValueError(problem)
            except ValueError as error:
                raise BertSnliError(f"{where}: row {number + 1}: {error}") from error
            pairs["premise"].append(read_text(premise))
            pairs["hypothesis"].append(read_text(hypothesis))
            pairs["label"].append(label)
            if votes:
                pairs["votes"].append(votes[number])
        return pairs

    used = list(dict.fromkeys(columns))
    row_numbers = range(len(rows)) if selected is None else selected
    options = {"batched": True, "with_indices": True, "remove_columns": used, "features": features}
    rows = rows.with_format(None).select_columns(used).select(row_numbers)
    pairs = rows.map(read_batch, input_columns=columns, desc="Reading pairs", **options)
    if len(pairs) == 0:
        raise BertSnliError(f"{where}: no row has a gold label; give data with labels")
    return pairs, len(rows) - len(pairs), labels


def _order_scores(scores: object, labels: Sequence[str]) -> list[float]:
    """Return the probabilities of `labels` in their order."""
    if isinstance(scores, dict) and set(scores) == set(labels):
        values = [scores[label] for label in labels]
        if all(isinstance(value, float | int) and value >= 0 for value in values) and abs(sum(values) - 1) < 1e-3:
            return values
    raise ValueError(f"{SCORES} must be probabilities of {', '.join(labels)} that add up to 1; correct the row")


def read_parse(binary_parse: str) -> str:
    """Return the tokens of a binary parse tree, separated by single spaces (d2l 15.4)."""
    return " ".join(binary_parse.replace("(", "").replace(")", "").split())
