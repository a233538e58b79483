"""SNLI (Bowman et al., 2015) from wherever it lies, as `datasets` splits of premise, hypothesis and label.

Labels are mapped by name, never by number. `text_source` says which sentences are read: `raw`, as people typed
them, or `parse`, the leaves of the binary parse, which is what the book reads (d2l 15.4).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset

from bert_snli.data.sample import write_sample
from bert_snli.errors import BertSnliError
from bert_snli.folders import looks_local
from bert_snli.labels import BOOK_LABELS

HUB_ID = "stanfordnlp/snli"
SAMPLE = "sample"
TEXT_SOURCES = ("raw", "parse")
NO_GOLD_LABEL = "-"

# Our name of a split → the words that name it in files.
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}
# What a file's ending means to `datasets`: builder and options. SNLI's .txt files quote nothing and have sentences
# such as "None" and "n/a", which must stay text.
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".txt": ("csv", {"delimiter": "\t", "quoting": 3, "keep_default_na": False}),
    ".parquet": ("parquet", {}),
}
SHARD = re.compile(r"-\d+-of-\d+$")
# Stanford's column names and the hub's.
COLUMNS = {
    "raw": (("sentence1", "premise"), ("sentence2", "hypothesis")),
    "parse": (("sentence1_binary_parse",), ("sentence2_binary_parse",)),
}
LABEL_COLUMNS = ("gold_label", "label")


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
    labels: Sequence[str] = BOOK_LABELS,
) -> SNLI:
    """Load `splits` of SNLI, with columns `premise`, `hypothesis` and `label` (a `ClassLabel`).

    Args:
        dataset_name_or_path: a hub id, Stanford's zip, a folder of its jsonl or txt files or of parquet files, or
            `"sample"`, the generated corpus of `bert_snli.data.sample`.
        splits: of `train`, `validation`, `test`.
        text_source: `raw` or `parse`.
        labels: the three labels in the order in which they are numbered.

    Raises:
        BertSnliError: nothing there, a split or column that is missing, a label outside the set, no labelled row.
    """
    loaded, num_dropped = DatasetDict(), {}
    for split in splits:
        rows, where = _read_split(dataset_name_or_path, split)
        loaded[split] = _normalise(rows, text_source, labels, where)
        num_dropped[split] = len(rows) - len(loaded[split])
    return SNLI(loaded, num_dropped)


def _read_split(name_or_path: str, split: str) -> tuple[Dataset, str]:
    """The rows as they are, and where they come from, for messages."""
    path = Path(name_or_path)
    if name_or_path == SAMPLE:
        path = _sample_folder()
    if path.is_dir():
        files = _files_of_split(sorted(path.rglob("*")), split, name_or_path)
        return _read_files(files, split), ", ".join(map(str, files))
    if zipfile.is_zipfile(path):
        return _read_files(_extract(path, split), split), f"{path} ({split})"
    if path.exists() or path.suffix in {".zip", *READERS} or looks_local(name_or_path):
        what = "not a zip or a folder" if path.exists() else "no such file or folder"
        raise BertSnliError(
            f"--dataset_name_or_path {name_or_path}: {what}; "
            f"give Stanford's zip, a folder of its files, a hub id such as {HUB_ID}, or '{SAMPLE}'"
        )
    return _read_hub(name_or_path, split), f"{name_or_path} ({split})"


def _read_hub(name: str, split: str) -> Dataset:
    try:
        return load_dataset(name, split=split)
    except Exception as error:  # anything from no network to a repository that is no dataset
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BertSnliError(
            f"--dataset_name_or_path {name}: cannot be loaded from the hub ({reason}); "
            f"check the id and the network, or give a file, a folder or '{SAMPLE}'"
        ) from error


def _read_files(files: Sequence[Path], split: str) -> Dataset:
    builder, options = READERS[files[0].suffix]
    try:
        return load_dataset(builder, data_files={split: [str(file) for file in files]}, split=split, **options)
    except Exception as error:  # a damaged file ends in any of the builders' many errors
        cause = error.__cause__ or error
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise BertSnliError(
            f"{files[0]}: cannot be read as {files[0].suffix} ({reason}); get the file again"
        ) from error


def _files_of_split(paths: Iterable[Path | PurePosixPath], split: str, where: str) -> list:
    """The files of `split` among `paths`, all of the first kind that is there.

    Raises:
        BertSnliError: there is none, or several that are not shards of one.
    """
    named = re.compile(rf"(?:^|[^a-z])(?:{'|'.join(SPLITS[split])})(?:[^a-z]|$)")
    visible = [path for path in paths if not path.name.startswith(".") and named.search(path.name)]
    for suffix in READERS:
        files = [path for path in visible if path.suffix == suffix]
        if len(files) > 1 and not all(SHARD.search(path.stem) for path in files):
            raise BertSnliError(
                f"--dataset_name_or_path {where}: both {files[0].name} and {files[1].name} look like the {split} "
                "split; give a folder with one of them"
            )
        if files:
            return files
    raise BertSnliError(
        f"--dataset_name_or_path {where}: no {' or '.join(READERS)} file of the {split} split in it "
        f"(a name with '{SPLITS[split][-1]}'); check that it holds SNLI"
    )


def _cache_folder() -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "bert_snli"


def _extract(archive_path: Path, split: str) -> list[Path]:
    """Copy the members of `split`, and nothing else, into the cache."""
    try:
        with zipfile.ZipFile(archive_path) as archive:
            names = _files_of_split([PurePosixPath(name) for name in archive.namelist()], split, str(archive_path))
            return [_extract_member(archive, archive.getinfo(str(name))) for name in names]
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise BertSnliError(f"{archive_path}: damaged or unsupported zip ({error}); get it again") from error


def _extract_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Path:
    """Where the member lies unpacked: a name of ours, made of its checksum and size, so that it is unpacked once."""
    target = _cache_folder() / f"{member.CRC:08x}-{member.file_size}{PurePosixPath(member.filename).suffix}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            copy = Path(folder) / target.name
            with archive.open(member) as source, copy.open("wb") as file:
                shutil.copyfileobj(source, file)
            os.replace(copy, target)
    return target


def _sample_folder() -> Path:
    """The generated corpus, written once."""
    folder = _cache_folder() / SAMPLE
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent))
        write_sample(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:  # another process was faster
            shutil.rmtree(temporary)
    return folder


def _normalise(rows: Dataset, text_source: str, labels: Sequence[str], where: str) -> Dataset:
    """Rows with a gold label, in the columns that `load_snli` promises."""
    premise, hypothesis = (_column(rows, names, text_source, where) for names in COLUMNS[text_source])
    label = _column(rows, LABEL_COLUMNS, text_source, where)
    numbers = _label_numbers(rows, label, labels, where)
    read = read_parse if text_source == "parse" else str

    def keep_labelled(batch: Mapping[str, list]) -> dict[str, list]:
        kept = [i for i, value in enumerate(batch[label]) if numbers[value] is not None]
        return {
            "premise": [read(batch[premise][i] or "") for i in kept],
            "hypothesis": [read(batch[hypothesis][i] or "") for i in kept],
            "label": [numbers[batch[label][i]] for i in kept],
        }

    normal = rows.select_columns([premise, hypothesis, label]).map(
        keep_labelled,
        batched=True,
        remove_columns=[premise, hypothesis, label],
        features=Features(
            {"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=list(labels))}
        ),
        desc="Reading labels",
    )
    if len(normal) == 0:
        raise BertSnliError(f"{where}: no pair with a gold label; give a set that has some")
    return normal


def _column(rows: Dataset, names: Sequence[str], text_source: str, where: str) -> str:
    for name in names:
        if name in rows.column_names:
            return name
    remedy = "use --text_source raw" if text_source == "parse" else "give a set in SNLI's layout"
    raise BertSnliError(f"{where}: no column {' or '.join(names)}; {remedy}")


def _label_numbers(rows: Dataset, column: str, labels: Sequence[str], where: str) -> dict[Any, int | None]:
    """Label as it stands in the file → its number in `labels`, None for rows without a gold label."""
    feature = rows.features[column]
    if isinstance(feature, ClassLabel):
        named: dict[Any, str] = {-1: NO_GOLD_LABEL, **dict(enumerate(feature.names))}
    else:
        named = {value: value for value in rows.unique(column)}
    numbers: dict[Any, int | None] = {None: None}
    for value, name in named.items():
        if value is not None and name != NO_GOLD_LABEL and name not in labels:
            row = next((i for i, found in enumerate(rows[column]) if found == value), 0)
            raise BertSnliError(
                f"{where}: label {name!r} in row {row + 1} is none of {', '.join(labels)}; "
                f"rename it, or write {NO_GOLD_LABEL!r} for a pair without a gold label"
            )
        numbers[value] = labels.index(name) if name in labels else None
    return numbers


def read_parse(binary_parse: str) -> str:
    """The leaves of a binary parse, joined by single spaces, as the book strips them (d2l 15.4)."""
    return " ".join(binary_parse.replace("(", "").replace(")", "").split())
