"""Read the rows of data sets from the Hub, a zip, a folder, a file or memory."""

import csv
import glob
import hashlib
import math
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetNotFoundError

from bert_snli.choices import HUB_ID
from bert_snli.data import sample
from bert_snli.data.pair_files import check_delimiter, describe_damage
from bert_snli.errors import BertSnliError, one_line
from bert_snli.files import looks_like_path

SAMPLE = "sample"

# Split → words that mean this split in file names. Other splits are found by their own names.
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}
# File suffix → `datasets` builder.
READERS = {".jsonl": "json", ".txt": "csv", ".tsv": "csv", ".csv": "csv", ".parquet": "parquet"}
TEXT_SUFFIXES = (".txt", ".text", ".md")
QUOTED = re.compile(r'"(?:[^"]|"")*"')  # a field in quotes, as in .csv
SHARD = re.compile(r"-\d+-of-\d+$|(?<=^esnli_train)_\d$")  # train-00000-of-00002, esnli_train_1


def is_hub_id(name_or_path: str) -> bool:
    """Return whether a name is a Hub id, and not the path of an existing or missing file or folder."""
    is_file = Path(name_or_path).suffix in {".zip", *READERS, *TEXT_SUFFIXES}
    return not (is_file or os.path.exists(name_or_path) or looks_like_path(name_or_path))


def read_split(dataset: str | Mapping[str, Dataset], split: str, config_name: str | None = None) -> tuple[Dataset, str]:
    """Read the rows of a split (of one file: all rows) unchanged. Return also a description for error messages."""
    if isinstance(dataset, Dataset):
        raise BertSnliError("dataset: is a Dataset, which has no splits; give a DatasetDict")
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise BertSnliError(f"dataset: no split {split!r} (found: {', '.join(map(str, dataset))}); add the split")
        return dataset[split], f"dataset[{split!r}]"
    if dataset != SAMPLE and is_hub_id(dataset):
        return load_from_hub(dataset, config_name, split), f"{dataset} ({split})"
    if config_name:
        raise BertSnliError(f"dataset_config_name {config_name}: {dataset} is not on the Hub; leave it out")
    path = Path(dataset)
    if dataset == SAMPLE:
        path = _cached_folder(Path(sample.__file__).read_text(), sample.write_sample)
    if path.is_dir():
        files = _files_of_split(sorted(path.rglob("*")), split, dataset)
    elif zipfile.is_zipfile(path):
        files = _extract(path, split)
    elif is_table(path):
        if split not in ("train", "validation"):
            remedy = "choose train or validation, or give a folder with a file for each split"
            raise BertSnliError(f"split {split}: {dataset} is one file, which has no split of this name; {remedy}")
        files = [path]
    else:
        what = "is not a zip or a table" if path.is_file() else "no such file or folder"
        remedy = f"give Stanford's zip, a folder of its files, one table, a Hub id such as {HUB_ID}, or '{SAMPLE}'"
        raise BertSnliError(f"dataset_name_or_path {dataset}: {what}; {remedy}")
    return read_files(files, split), f"{dataset} ({', '.join(file.name for file in files)})"


def is_table(path: Path) -> bool:
    """Return whether `path` is one file of pairs, for all splits."""
    return path.is_file() and path.suffix in READERS


def read_train_file(path: Path) -> Dataset:
    """Read one file as the split `train`."""
    if not is_table(path):
        what = f"not an existing file of type {', '.join(READERS)}"
        remedy = "give one with the columns premise, hypothesis and label or scores"
        raise BertSnliError(f"train_file {path}: {what}; {remedy}")
    return read_files([path], "train")


def rows_of_split(rows: Dataset, dataset: str | Mapping[str, Dataset], split: str) -> list[int] | None:
    """Return the row numbers of a split of one file: a random tenth, always the same, is `validation`. Else None."""
    if isinstance(dataset, Mapping) or not is_table(Path(dataset)):
        return None
    if len(rows) < 2:
        raise BertSnliError(f"dataset_name_or_path {dataset}: one row cannot be split; give more rows")
    order = np.random.default_rng(0).permutation(len(rows))
    num_held_out = math.ceil(len(rows) / 10)
    return sorted(order[num_held_out:].tolist() if split == "train" else order[:num_held_out].tolist())


def load_from_hub(name: str, config_name: str | None = None, split: str | None = None) -> Any:
    """Load a split of a data set on the Hub, or all of them as a `DatasetDict`."""
    try:
        return load_dataset(name, config_name, split=split)
    except Exception as error:  # errors of `datasets`, `huggingface_hub` and `httpx` have no common base class
        what = f"cannot be loaded from the Hub ({one_line(error)}); check its name and its splits"
        if isinstance(error, DatasetNotFoundError):
            what = "no such file or folder, and no data set on the Hub that your token can read; check the name"
        elif isinstance(error, ConnectionError):
            what = f"no such file or folder, and the Hub cannot be reached ({one_line(error)}); check the network"
        raise BertSnliError(f"dataset_name_or_path {name}: {what}, or give a folder or '{SAMPLE}'") from error


def read_files(files: Sequence[Path], split: str, builder: str | None = None) -> Dataset:
    """Read files of one format as the split `split`. The builder `text` reads each line as a row."""
    if not any(file.stat().st_size for file in files):
        raise BertSnliError(f"{files[0]}: the file is empty; get it again, or give another file")
    builder = builder or READERS[files[0].suffix]
    try:
        options = _table_options(files) if builder == "csv" else {}
        paths = [glob.escape(str(file)) for file in files]  # `datasets` treats a path as a pattern
        rows = load_dataset(builder, data_files={split: paths}, split=split, **options)
        rows.data.validate(full=True)  # report invalid UTF-8 here, and not at the first access
        return rows
    except BertSnliError:
        raise
    except Exception as error:  # the errors of `datasets` and of its readers have no common base class
        for file in files if builder != "parquet" else ():
            if damage := describe_damage(file):
                raise BertSnliError(f"{file}: {damage}") from error
        reason = one_line(error.__cause__ or error)
        what = "has no rows" if "no data" in reason else f"cannot be read as {files[0].suffix} ({reason})"
        raise BertSnliError(f"{files[0]}: {what}; correct the file, or get it again") from error


def _table_options(files: Sequence[Path]) -> dict[str, Any]:
    """Return the options of the csv builder. All cells are text, so that "None" and "007" are read unchanged."""
    delimiter = "," if files[0].suffix == ".csv" else "\t"
    quoting: Any = csv.QUOTE_MINIMAL if all(map(_is_quoted, files)) else csv.QUOTE_NONE
    with files[0].open(encoding="utf-8-sig", newline="") as file:
        names: list[str] = next(csv.reader(file, delimiter=delimiter, quoting=quoting), [])
    check_delimiter(names, delimiter, str(files[0]))
    features = Features({name: Value("string") for name in names})
    return {"delimiter": delimiter, "quoting": quoting, "keep_default_na": False, "features": features}


def _is_quoted(file: Path) -> bool:
    """Return whether quotes enclose fields: always in .csv, in .tsv if all are balanced, never in .txt."""
    if file.suffix != ".tsv":
        return file.suffix == ".csv"
    with file.open(encoding="utf-8-sig", newline="") as lines:
        fields = (field for line in lines for field in line.rstrip("\r\n").split("\t"))
        return all(QUOTED.fullmatch(field) for field in fields if field.startswith('"'))


def _files_of_split(paths: Iterable[Path | PurePosixPath], split: str, where: str) -> list:
    """Choose the files of `split`: one file or all its shards, in the first format of `READERS` that exists."""
    words = SPLITS.get(split, (re.escape(split),))
    name_of_split = re.compile(rf"(?:^|[^a-z])(?:{'|'.join(words)})(?:[^a-z]|$)")
    candidates = [path for path in paths if not path.name.startswith(".") and name_of_split.search(path.name)]
    for suffix in READERS:
        files = [path for path in candidates if path.suffix == suffix]
        if len({path.with_name(SHARD.sub("-shard", path.stem)) for path in files}) > 1:
            both = f"both {files[0].name} and {files[-1].name} look like the {split} split"
            raise BertSnliError(f"dataset_name_or_path {where}: {both}; keep only one of them in it")
        if files:
            return files
    what = f"no {', '.join(READERS)} file of the {split} split"
    raise BertSnliError(f"dataset_name_or_path {where}: {what}; add one with '{words[-1]}' in its name")


def _extract(archive: Path, split: str) -> list[Path]:
    """Extract the files of `split` into the cache."""

    def extract(folder: Path) -> None:
        with zipfile.ZipFile(archive) as opened:
            for member in _files_of_split(map(PurePosixPath, opened.namelist()), split, str(archive)):
                with opened.open(str(member)) as source, (folder / member.name).open("wb") as target:
                    shutil.copyfileobj(source, target)

    status = archive.stat()
    try:
        folder = _cached_folder(repr((archive.resolve(), status.st_mtime_ns, status.st_size, split)), extract)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise BertSnliError(f"{archive}: damaged or unsupported zip ({error}); get the file again") from error
    return sorted(folder.iterdir())


def _cached_folder(key: str, write_files: Callable[[Path], object]) -> Path:
    """Return the cache folder for `key`. If it does not exist, `write_files` fills it."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "bert_snli" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            files = Path(temporary) / "files"  # unlike `temporary`, other users may read it
            files.mkdir()
            write_files(files)
            with suppress(OSError):  # another process was faster
                os.rename(files, folder)
    return folder
