"""Load SNLI (Bowman et al., 2015) and similar data sets with the columns premise, hypothesis and label.

Labels are mapped by name. `text_source` selects the text: `raw` sentences, or `parse`, the tokens of the binary parse
trees that d2l uses (section 15.4).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from bert_snli.choices import HUB_ID, TEXT_SOURCES
from bert_snli.data.layouts import count_votes, find_columns, name_labels, number_labels
from bert_snli.data.pair_files import find_problem
from bert_snli.data.sources import READERS, SPLITS, read_files, read_split
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
    if text_source not in TEXT_SOURCES or isinstance(splits, str):
        given = f"got text_source {text_source!r} and splits {splits!r}"
        raise BertSnliError(f"load_snli: {given}; give text_source raw or parse, and a list of splits")
    in_memory = isinstance(dataset_name_or_path, Mapping)
    label_mapping = {str(number): name for number, name in enumerate(labels)} if in_memory else {}
    loaded, num_dropped = DatasetDict(), {}
    for split in splits:
        rows, where = read_split(dataset_name_or_path, split)
        loaded[split] = _read_pairs(rows, where, text_source, {}, labels, label_mapping)
        num_dropped[split] = len(rows) - len(loaded[split])
    return SNLI(loaded, num_dropped)


def load_train_file(path: Path, *, text_source: str = "raw", labels: Sequence[str] = D2L_LABELS) -> tuple[Dataset, int]:
    """Load training pairs from one file. Return also the number of dropped rows without a gold label.

    If the file has a column `scores` (see `bert-snli predict`), `label` is the list of these probabilities in the
    order of `labels`.
    """
    where = f"train_file {path}"
    if not path.is_file() or path.suffix not in READERS:
        what = f"not an existing file of type {', '.join(READERS)}"
        raise BertSnliError(f"{where}: {what}; give one with the columns premise, hypothesis and label or scores")
    rows = read_files([path], "train")
    columns = {"label": SCORES} if SCORES in rows.column_names else {}
    pairs = _read_pairs(rows, where, text_source, columns, labels, {})
    return pairs, len(rows) - len(pairs)


@dataclass(frozen=True)
class EvaluationSet:
    """Pairs for evaluation. A column `votes` counts the labels of single annotators, in the order of `D2L_LABELS`."""

    name: str  # of the split or of the file
    pairs: Dataset  # `label` is a `ClassLabel` of `D2L_LABELS` or of `TWO_WAY_LABELS`
    num_dropped: int  # rows without a gold label

    @property
    def labels(self) -> list[str]:
        """Return the names of the labels in the order of their numbers."""
        return list(self.pairs.features["label"].names)


def load_evaluation_set(
    dataset_name_or_path: str = HUB_ID,
    *,
    split: str | None = None,
    text_source: str = "raw",
    columns: Mapping[str, str] | None = None,
    label_mapping: Mapping[str, str] | None = None,
) -> EvaluationSet:
    """Load a split of any source that `load_snli` accepts, or one .jsonl, .txt, .tsv, .csv or .parquet file.

    Args:
        split: the split to load, by default `test`. A single file has no splits.
        columns: the data set's names of `premise`, `hypothesis` and `label`, if `layouts.py` does not know them.
        label_mapping: label of the data set → label of bert-snli, if `layouts.py` does not know it.
    """
    path, label_mapping = Path(dataset_name_or_path), label_mapping or {}
    if path.is_file() and path.suffix in READERS:
        if split is not None:
            raise BertSnliError(f"split {split}: {dataset_name_or_path} is one file without splits; leave split out")
        name, where, rows = path.stem, str(path), read_files([path], "test")
    else:
        name = split or "test"
        rows, where = read_split(dataset_name_or_path, name)
    votes = count_votes(rows, label_mapping)
    # ChaosNLI nests its texts, so the columns are flattened.
    pairs = _read_pairs(rows.flatten(), where, text_source, columns or {}, None, label_mapping, votes)
    return EvaluationSet(name, pairs, len(rows) - len(pairs))


def _read_pairs(
    rows: Dataset,
    where: str,
    text_source: str,
    declared_columns: Mapping[str, str],
    labels: Sequence[str] | None,
    label_mapping: Mapping[str, str],
    votes: Sequence[list[int]] = (),
) -> Dataset:
    """Read the rows with a gold label. If `labels` is None, `TWO_WAY_LABELS` (as in HANS) or `D2L_LABELS` are used."""
    columns = find_columns(rows, text_source, declared_columns, where)
    label_feature: ClassLabel | List
    read_label: Callable[..., int | list[float] | None]
    if columns[2] == SCORES:
        label_feature, read_label = List(Value("float32")), partial(_order_scores, labels=labels or D2L_LABELS)
    else:
        names = name_labels(rows, columns[2], label_mapping)
        labels = labels or (TWO_WAY_LABELS if NON_ENTAILMENT in names.values() else D2L_LABELS)
        label_feature, read_label = ClassLabel(names=list(labels)), number_labels(names, labels, where).get
    read_text = read_parse if text_source == "parse" else str
    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": label_feature})
    if votes:
        features["votes"] = List(Value("int32"))

    def read_batch(*columns_and_numbers: list) -> dict[str, list]:
        pairs: dict[str, list] = {name: [] for name in features}
        for premise, hypothesis, value, number in zip(*columns_and_numbers, strict=True):
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
    options = {"batched": True, "with_indices": True, "remove_columns": used, "features": features}
    rows = rows.with_format(None).select_columns(used)
    pairs = rows.map(read_batch, input_columns=columns, desc="Reading pairs", **options)
    if len(pairs) == 0:
        raise BertSnliError(f"{where}: no row has a gold label; give data with labels")
    return pairs


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
