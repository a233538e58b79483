"""SNLI (Bowman et al., 2015) and similar data sets as `datasets` with columns premise, hypothesis and label.

Labels are mapped by name. `text_source` says which text is read: `raw` text, or `parse`, the leaves of the binary
parse, which d2l reads (section 15.4).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from bert_snli.choices import HUB_ID
from bert_snli.data.layouts import (
    NO_GOLD_LABEL,
    PairColumns,
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

NAME_COLUMNS = "name them premise, hypothesis and label"
NAME_LABELS = f"rename it, or write {NO_GOLD_LABEL!r} for a pair without a gold label"
# For `load_evaluation_set`, which can be given other names.
MAP_COLUMNS = "map them: columns premise=NAME hypothesis=NAME label=NAME"
MAP_LABELS = "map it: labels {name}=LABEL, or {name}=- for no gold label"
SCORES = "scores"  # the column that `bert-snli predict` writes


@dataclass(frozen=True)
class SNLI:
    """Splits of a data set, and the number of rows without a gold label that were dropped from each."""

    splits: DatasetDict
    num_dropped: dict[str, int]


def load_snli(
    dataset_name_or_path: str | Mapping[str, Dataset] = HUB_ID,
    *,
    splits: Sequence[str] = tuple(SPLITS),
    text_source: str = "raw",
    labels: Sequence[str] = D2L_LABELS,
) -> SNLI:
    """Load splits of SNLI with columns `premise`, `hypothesis` and `label` (a `ClassLabel`).

    Args:
        dataset_name_or_path: a Hub id, Stanford's zip, a folder of its jsonl or txt files or of parquet files,
            `"sample"` for the generated corpus of `bert_snli.data.sample`, or a `DatasetDict`. Its labels are a
            `ClassLabel` in any order, names, or numbers in the order of `labels`; -1 and None mean no gold label.
        splits: some of `train`, `validation` and `test`.
        text_source: `raw` or `parse`.
        labels: the three labels in the order of their numbers.

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
    in_memory = isinstance(dataset_name_or_path, Mapping)
    label_names = {str(number): name for number, name in enumerate(labels)} if in_memory else {}
    loaded, num_dropped = DatasetDict(), {}
    for split in splits:
        rows, where = read_split(dataset_name_or_path, split)
        columns = find_columns(rows, text_source, {}, where, NAME_COLUMNS)
        numbers = number_labels(rows, columns.label, labels, label_names, where, NAME_LABELS)
        loaded[split] = _read_pairs(rows, columns, ClassLabel(names=list(labels)), numbers.get, text_source, where)
        num_dropped[split] = len(rows) - len(loaded[split])
    return SNLI(loaded, num_dropped)


def load_train_file(path: Path, *, text_source: str = "raw", labels: Sequence[str] = D2L_LABELS) -> tuple[Dataset, int]:
    """Load the training pairs of one file, and the number of rows without a gold label that were dropped.

    The columns are those of `load_snli`. If the file has a column `scores`, a probability for each label name as
    `bert-snli predict` writes them, `label` is the list of these probabilities in the order of `labels`.
    """
    where = f"train_file {path}"
    if not is_data_file(str(path)):
        what = "not a file of a kind that is read" if path.exists() else "no such file"
        raise BertSnliError(f"{where}: {what}; give {', '.join(READERS)} with premise, hypothesis and label or scores")
    rows = read_files([path], "train")
    has_scores = SCORES in rows.column_names
    columns = find_columns(rows, text_source, {"label": SCORES} if has_scores else {}, where, NAME_COLUMNS)
    if has_scores:
        order_scores = partial(_order_scores, labels=labels)
        pairs = _read_pairs(rows, columns, List(Value("float32")), order_scores, text_source, where)
    else:
        numbers = number_labels(rows, columns.label, labels, {}, where, NAME_LABELS)
        pairs = _read_pairs(rows, columns, ClassLabel(names=list(labels)), numbers.get, text_source, where)
    return pairs, len(rows) - len(pairs)


@dataclass(frozen=True)
class EvaluationSet:
    """Pairs for evaluation: `premise`, `hypothesis`, `label` and, if there are labels of single annotators, `votes`.

    Args:
        name: of the split or of the file.
        pairs: `label` is a `ClassLabel` of `D2L_LABELS` or of `TWO_WAY_LABELS`; `votes` counts the annotators' labels
            in the order of `D2L_LABELS`.
        num_dropped: rows without a gold label that were dropped.
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
    columns: Mapping[str, str] | None = None,
    label_names: Mapping[str, str] | None = None,
) -> EvaluationSet:
    """Load a split of any source that `load_snli` takes, or one .jsonl, .txt, .tsv, .csv or .parquet file.

    Args:
        split: `test` if it is not given; a file has none.
        columns: the data set's names of `premise`, `hypothesis` and `label`, if `layouts.py` does not know them.
        label_names: the data set's name of a label → our name, if `layouts.py` does not know it.
    """
    label_names = label_names or {}
    if is_data_file(dataset_name_or_path):
        if split is not None:
            raise BertSnliError(f"split {split}: {dataset_name_or_path} is one file; leave split out")
        path = Path(dataset_name_or_path)
        name, where, rows = path.stem, str(path), read_files([path])
    else:
        name = split or "test"
        rows, where = read_split(dataset_name_or_path, name)
    rows = rows.flatten()  # ChaosNLI nests its texts
    found = find_columns(rows, text_source, columns or {}, where, MAP_COLUMNS)
    labels = TWO_WAY_LABELS if is_two_way(name_labels(rows, found.label, label_names).values()) else D2L_LABELS
    numbers = number_labels(rows, found.label, labels, label_names, where, MAP_LABELS)
    label_feature, annotators = ClassLabel(names=list(labels)), annotator_columns(rows)
    pairs = _read_pairs(rows, found, label_feature, numbers.get, text_source, where, annotators, label_names)
    return EvaluationSet(name, pairs, len(rows) - len(pairs))


def _read_pairs(
    rows: Dataset,
    columns: PairColumns,
    label_feature: ClassLabel | List,
    convert_label: Callable[..., int | list[float] | None],
    text_source: str,
    where: str,
    annotators: Sequence[str] = (),
    label_names: Mapping[str, str] | None = None,
) -> Dataset:
    """Read the rows for which `convert_label` does not give None."""
    read_text = read_parse if text_source == "parse" else str
    features = {"premise": Value("string"), "hypothesis": Value("string"), "label": label_feature}
    if annotators:
        features["votes"] = List(Value("int32"))

    def read_batch(batch: Mapping[str, list], row_numbers: list[int]) -> dict[str, list]:
        pairs: dict[str, list] = {name: [] for name in features}
        for i, (premise, hypothesis, value) in enumerate(zip(*(batch[column] for column in columns), strict=True)):
            try:
                label = convert_label(value)
            except ValueError as error:
                raise BertSnliError(f"{where}: row {row_numbers[i] + 1}: {error}") from error
            if label is None:
                continue
            if premise is None or hypothesis is None:
                missing = columns.premise if premise is None else columns.hypothesis
                raise BertSnliError(f"{where}: row {row_numbers[i] + 1} has no {missing}; remove or correct the row")
            pairs["premise"].append(read_text(premise))
            pairs["hypothesis"].append(read_text(hypothesis))
            pairs["label"].append(label)
            if annotators:
                pairs["votes"].append(count_votes({name: batch[name][i] for name in annotators}, label_names or {}))
        return pairs

    used = list(dict.fromkeys([*columns, *annotators]))
    options = {"batched": True, "with_indices": True, "remove_columns": used, "features": Features(features)}
    pairs = rows.with_format(None).select_columns(used).map(read_batch, desc="Reading pairs", **options)
    if len(pairs) == 0:
        raise BertSnliError(f"{where}: no pair with a gold label; give a data set that has some")
    return pairs


def _order_scores(scores: object, labels: Sequence[str]) -> list[float]:
    """Return the probabilities of `labels` in their order."""
    if isinstance(scores, dict) and set(scores) == set(labels):
        values = [scores[label] for label in labels]
        if all(isinstance(value, float | int) and value >= 0 for value in values) and abs(sum(values) - 1) < 1e-3:
            return values
    raise ValueError(f"{SCORES} must be probabilities of {', '.join(labels)} that add up to 1")


def read_parse(binary_parse: str) -> str:
    """Return the leaves of a binary parse with single spaces between them, as d2l reads them (section 15.4)."""
    return " ".join(binary_parse.replace("(", "").replace(")", "").split())
