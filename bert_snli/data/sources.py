"""Where pairs lie: a hub id, a zip, a folder or a file; and the rows that are there, as they are."""

from __future__ import annotations

import csv
import glob
import hashlib
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import datasets
from datasets import Dataset, Features, Value, load_dataset

from bert_snli.choices import HUB_ID
from bert_snli.data import sample
from bert_snli.errors import BertSnliError
from bert_snli.files import looks_like_path, make_temporary_folder

SAMPLE = "sample"

# Our name of a split → the words that name it in files; any other split is named by its own.
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}
# What a file's ending means to `datasets`.
READERS = {".jsonl": "json", ".txt": "csv", ".tsv": "csv", ".csv": "csv", ".parquet": "parquet"}
QUOTED = re.compile(r'"(?:[^"]|"")*"')  # a field that .csv would have in quotes
SHARD = re.compile(r"-\d+-of-\d+$|(?<=^esnli_train)_\d$")  # train-00000-of-00002, esnli_train_1


def is_data_file(name_or_path: str) -> bool:
    """Whether it names one file of rows, which has no splits."""
    path = Path(name_or_path)
    return path.is_file() and path.suffix in READERS


def read_split(name_or_path: str, split: str) -> tuple[Dataset, str]:
    """The rows of a split as they are, and where they come from, for messages.

    Raises:
        BertSnliError: nothing there, or nothing that can be read.
    """
    path = Path(name_or_path)
    if name_or_path == SAMPLE:
        path = _sample_folder()
    if path.is_dir():
        files = _files_of_split(sorted(path.rglob("*")), split, name_or_path)
        return read_files(files, split), ", ".join(map(str, files))
    if zipfile.is_zipfile(path):
        return read_files(_extract(path, split), split), f"{path} ({split})"
    if path.exists() or path.suffix in {".zip", *READERS} or looks_like_path(name_or_path):
        what = "not a zip or a folder" if path.exists() else "no such file or folder"
        raise BertSnliError(
            f"--dataset_name_or_path {name_or_path}: {what}; "
            f"give Stanford's zip, a folder of its files, a hub id such as {HUB_ID}, or '{SAMPLE}'; "
            f"to evaluate, also one {', '.join(READERS)} file"
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


def read_files(files: Sequence[Path], split: str = "test") -> Dataset:
    """The rows of files of one kind, under the name `split`.

    Raises:
        BertSnliError: they cannot be read.
    """
    builder = READERS[files[0].suffix]
    try:
        options = _table_options(files) if builder == "csv" else {}
        paths = [glob.escape(str(file)) for file in files]  # `datasets` takes a path for a pattern
        return load_dataset(builder, data_files={split: paths}, split=split, **options)
    except Exception as error:  # a damaged file ends in any of the builders' many errors
        cause = error.__cause__ or error
        if isinstance(cause, (StopIteration, IndexError)) or "corresponds to no data" in str(cause):
            raise BertSnliError(f"{files[0]}: holds no rows; give a file with some") from error
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        remedy = "save it as UTF-8" if isinstance(cause, UnicodeDecodeError) else "mend the file or get it again"
        raise BertSnliError(f"{files[0]}: cannot be read as {files[0].suffix} ({reason}); {remedy}") from error


def _table_options(files: Sequence[Path]) -> dict[str, Any]:
    """How a table is read: as text throughout, as sentences such as "None", "n/a" and "007" must stay what they are."""
    delimiter, quoted = "," if files[0].suffix == ".csv" else "\t", all(map(_is_quoted, files))
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with files[0].open(encoding="utf-8-sig", newline="") as file:
        names: list[str] = next(csv.reader(file, delimiter=delimiter, quoting=quoting), [])
    features = Features({name: Value("string") for name in names})
    return {"delimiter": delimiter, "quoting": quoting, "keep_default_na": False, "features": features}


def _is_quoted(file: Path) -> bool:
    """Whether quotes in a table are part of its format: in .csv; not in Stanford's .txt; in .tsv if they come in pairs.

    Some publish .tsv with quotes around what needs them, others with sentences as they stand, of which some begin with
    a quote that ends elsewhere.
    """
    if file.suffix != ".tsv":
        return file.suffix == ".csv"
    with file.open(encoding="utf-8-sig", newline="") as lines:
        fields = (field for line in lines for field in line.rstrip("\r\n").split("\t"))
        return all(QUOTED.fullmatch(field) for field in fields if field.startswith('"'))


def _files_of_split(paths: Iterable[Path | PurePosixPath], split: str, where: str) -> list:
    """The files of `split` among `paths`, all of the first kind that is there.

    Raises:
        BertSnliError: there is none, or several that are not shards of one.
    """
    words = SPLITS.get(split, (re.escape(split),))
    named = re.compile(rf"(?:^|[^a-z])(?:{'|'.join(words)})(?:[^a-z]|$)")
    visible = [path for path in paths if not path.name.startswith(".") and named.search(path.name)]
    for suffix in READERS:
        files = [path for path in visible if path.suffix == suffix]
        wholes = {(path.parent, SHARD.sub("", path.stem)) for path in files}
        if len(files) > 1 and (len(wholes) > 1 or not all(SHARD.search(path.stem) for path in files)):
            raise BertSnliError(
                f"--dataset_name_or_path {where}: both {files[0].name} and {files[1].name} look like the {split} "
                "split; give one of them"
            )
        if files:
            return files
    raise BertSnliError(
        f"--dataset_name_or_path {where}: no {', '.join(READERS)} file of the {split} split in it "
        f"(a name with '{words[-1]}'); check that it holds SNLI"
    )


def _cache_folder() -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "bert_snli"


def _extract(archive_path: Path, split: str) -> list[Path]:
    """Copy the members of `split`, and nothing else, into the cache."""
    try:
        with zipfile.ZipFile(archive_path) as archive:
            names = _files_of_split([PurePosixPath(name) for name in archive.namelist()], split, str(archive_path))
            return [_extract_member(archive_path, archive, archive.getinfo(str(name))) for name in names]
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise BertSnliError(f"{archive_path}: damaged or unsupported zip ({error}); get it again") from error


def _extract_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Path:
    """Where the member lies unpacked: a name of ours, made of where it comes from, so that it is unpacked once.

    Not of its checksum, which another archive can be made to have.
    """
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
    """Return the folder of the generated corpus, which is written once for each version of its generator."""
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
