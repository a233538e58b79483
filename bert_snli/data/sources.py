"""Read the rows of data sets from the Hub, a zip, a folder, a file or memory."""

import csv
import glob
import hashlib
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import datasets
from datasets import Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HTTPError

from bert_snli.choices import HUB_ID
from bert_snli.data import sample
from bert_snli.errors import BertSnliError
from bert_snli.files import looks_like_path, make_temporary_folder

SAMPLE = "sample"

# Our name of a split → the words for it in file names; any other split has its own name.
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}
# The `datasets` builder for a file's suffix.
READERS = {".jsonl": "json", ".txt": "csv", ".tsv": "csv", ".csv": "csv", ".parquet": "parquet"}
QUOTED = re.compile(r'"(?:[^"]|"")*"')  # a field in quotes, as in .csv
SHARD = re.compile(r"-\d+-of-\d+$|(?<=^esnli_train)_\d$")  # train-00000-of-00002, esnli_train_1
LOADING_ERRORS = (OSError, ValueError, RuntimeError, IndexError, StopIteration, csv.Error, DatasetsError, HTTPError)


def is_data_file(name_or_path: str) -> bool:
    """Whether it is the path of one file of rows, which has no splits."""
    path = Path(name_or_path)
    return path.is_file() and path.suffix in READERS


def read_split(dataset: str | Mapping[str, Dataset], split: str) -> tuple[Dataset, str]:
    """Read the rows of a split unchanged.

    Returns:
        The rows, and where they come from, for error messages.
    """
    if isinstance(dataset, Dataset):
        raise BertSnliError("dataset: a Dataset without splits; give a DatasetDict")
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise BertSnliError(f"dataset: no split {split!r}, only {', '.join(map(str, dataset))}")
        return dataset[split], f"dataset[{split!r}]"
    path = _sample_folder() if dataset == SAMPLE else Path(dataset)
    if path.is_dir():
        files = _files_of_split(sorted(path.rglob("*")), split, dataset)
        return read_files(files, split), ", ".join(map(str, files))
    if zipfile.is_zipfile(path):
        return read_files(_extract(path, split), split), f"{path} ({split})"
    if path.exists() or path.suffix in {".zip", *READERS} or looks_like_path(dataset):
        what = "not a zip or a folder" if path.exists() else "no such file or folder"
        raise BertSnliError(
            f"dataset_name_or_path {dataset}: {what}; give Stanford's zip, a folder of its files, "
            f"a hub id such as {HUB_ID}, or '{SAMPLE}'; to evaluate, also one {', '.join(READERS)} file"
        )
    try:
        return load_dataset(dataset, split=split), f"{dataset} ({split})"
    except LOADING_ERRORS as error:
        raise BertSnliError(
            f"dataset_name_or_path {dataset}: cannot be loaded from the hub ({_first_line(error)}); "
            f"check the id and the network, or give a file, a folder or '{SAMPLE}'"
        ) from error


def read_files(files: Sequence[Path], split: str = "test") -> Dataset:
    """Read the rows of files of one format, as a data set with the name `split`."""
    suffix = files[0].suffix
    try:
        options = _table_options(files) if READERS[suffix] == "csv" else {}
        paths = [glob.escape(str(file)) for file in files]  # `datasets` takes a path for a pattern
        return load_dataset(READERS[suffix], data_files={split: paths}, split=split, **options)
    except LOADING_ERRORS as error:
        cause = error.__cause__ or error
        if isinstance(cause, (StopIteration, IndexError)) or "corresponds to no data" in str(cause):
            raise BertSnliError(f"{files[0]}: holds no rows; give a file with some") from error
        remedy = "save it as UTF-8" if isinstance(cause, UnicodeDecodeError) else "correct it or get it again"
        raise BertSnliError(f"{files[0]}: cannot be read as {suffix} ({_first_line(cause)}); {remedy}") from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _table_options(files: Sequence[Path]) -> dict[str, Any]:
    """Options of the csv builder. All cells are text, so that "None", "n/a" and "007" are read unchanged."""
    delimiter, quoted = "," if files[0].suffix == ".csv" else "\t", all(map(_is_quoted, files))
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with files[0].open(encoding="utf-8-sig", newline="") as file:
        names: list[str] = next(csv.reader(file, delimiter=delimiter, quoting=quoting), [])
    features = Features({name: Value("string") for name in names})
    return {"delimiter": delimiter, "quoting": quoting, "keep_default_na": False, "features": features}


def _is_quoted(file: Path) -> bool:
    """Whether quotes in a table are part of its format: in .csv, and in .tsv if all are balanced; not in .txt."""
    if file.suffix != ".tsv":
        return file.suffix == ".csv"
    with file.open(encoding="utf-8-sig", newline="") as lines:
        fields = (field for line in lines for field in line.rstrip("\r\n").split("\t"))
        return all(QUOTED.fullmatch(field) for field in fields if field.startswith('"'))


def _files_of_split(paths: Iterable[Path | PurePosixPath], split: str, where: str) -> list:
    """Choose the files of `split` among `paths`, all of the first format that is there."""
    words = SPLITS.get(split, (re.escape(split),))
    name_of_split = re.compile(rf"(?:^|[^a-z])(?:{'|'.join(words)})(?:[^a-z]|$)")
    candidates = [path for path in paths if not path.name.startswith(".") and name_of_split.search(path.name)]
    for suffix in READERS:
        files = [path for path in candidates if path.suffix == suffix]
        sets = {(path.parent, SHARD.sub("", path.stem)) for path in files}
        if len(files) > 1 and (len(sets) > 1 or not all(SHARD.search(path.stem) for path in files)):
            both = f"both {files[0].name} and {files[1].name} look like the {split} split"
            raise BertSnliError(f"dataset_name_or_path {where}: {both}; give one of them")
        if files:
            return files
    what = f"no {', '.join(READERS)} file of the {split} split in it (a name with '{words[-1]}')"
    raise BertSnliError(f"dataset_name_or_path {where}: {what}; check that it holds SNLI")


def _cache_folder() -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "bert_snli"


def _extract(archive_path: Path, split: str) -> list[Path]:
    """Extract the members of `split` into the cache."""
    try:
        with zipfile.ZipFile(archive_path) as archive:
            names = _files_of_split([PurePosixPath(name) for name in archive.namelist()], split, str(archive_path))
            return [_extract_member(archive_path, archive, archive.getinfo(str(name))) for name in names]
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise BertSnliError(f"{archive_path}: damaged or unsupported zip ({error}); get it again") from error


def _extract_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Path:
    """Extract a member once, under a name made of its origin: another archive can be made with the same checksum."""
    status = path.stat()
    origin = (str(path.resolve()), status.st_mtime_ns, status.st_size, member.filename, member.CRC, member.file_size)
    name = hashlib.sha256(repr(origin).encode()).hexdigest()[:32]
    target = _cache_folder() / f"{name}{PurePosixPath(member.filename).suffix}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            copy = Path(folder) / target.name
            with archive.open(member) as source, copy.open("wb") as file:
                shutil.copyfileobj(source, file)
            os.replace(copy, target)
    return target


def _sample_folder() -> Path:
    """Return the folder of the generated corpus, written once for each version of its generator."""
    version = hashlib.sha256(Path(sample.__file__).read_bytes()).hexdigest()[:16]
    folder = _cache_folder() / f"{SAMPLE}-{version}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = make_temporary_folder(folder.parent)
        sample.write_sample(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:  # another process was faster
            shutil.rmtree(temporary)
    return folder
