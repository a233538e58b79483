"""Where the book's files lie: a folder, a zip archive, or a params file with its vocabulary beside it."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bert_snli.errors import BertSnliError

PARAMS, VOCABULARY = "pretrained.params", "vocab.json"


@dataclass(frozen=True)
class Source:
    """The two files of a checkpoint, on disk."""

    params: Path
    vocabulary: Path


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Find `pretrained.params` and `vocab.json` in `path`; an archive is unpacked for as long as the block runs.

    Raises:
        BertSnliError: `path` does not exist, or one of the two files is not there, or is there twice.
    """
    if path.is_dir():
        yield _beside(path / PARAMS)
    elif not path.is_file():
        raise BertSnliError(f"{path}: no such file or folder; give a folder or zip with {PARAMS} and {VOCABULARY}")
    elif _is_archive(path):
        with tempfile.TemporaryDirectory() as folder:
            yield _unpack(path, Path(folder))
    else:
        yield _beside(path)


def _beside(params: Path) -> Source:
    vocabulary = params.parent / VOCABULARY
    for file in (params, vocabulary):
        if not file.is_file():
            raise BertSnliError(f"{file}: not found; a checkpoint is {PARAMS} with {VOCABULARY} beside it")
    return Source(params, vocabulary)


def _is_archive(path: Path) -> bool:
    # PyTorch's own checkpoints are zip files too; theirs hold a data.pkl.
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return not any(PurePosixPath(name).name == "data.pkl" for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise BertSnliError(f"{path}: damaged zip ({error}); get the file again") from error


def _unpack(path: Path, folder: Path) -> Source:
    """Copy the two members, and nothing else, to fixed names in `folder`: no path of the archive's is followed."""
    try:
        with zipfile.ZipFile(path) as archive:
            for wanted in (PARAMS, VOCABULARY):
                members = [info for info in archive.infolist() if PurePosixPath(info.filename).name == wanted]
                if len(members) != 1:
                    raise BertSnliError(
                        f"{path}: holds {len(members)} files named {wanted}; an archive of the book's holds one"
                    )
                with archive.open(members[0]) as source, (folder / wanted).open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BertSnliError(f"{path}: damaged or unsupported zip ({error}); get the file again") from error
    return Source(folder / PARAMS, folder / VOCABULARY)
