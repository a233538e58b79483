"""Where the book's files lie: a folder, a zip archive, or a params file with its vocabulary beside it or named."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from bert_snli.errors import BertSnliError
from bert_snli.files import PARAMS, VOCABULARY

# Weights hardly shrink, vocabularies to a quarter: an archive that would grow more than this is made to fill a disk.
LARGEST_EXPANSION = 20
SMALL_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Source:
    """The two files of a checkpoint, on disk, and the archive that they came in, if they did."""

    params: Path
    vocabulary: Path
    archive: Path | None = None


@contextmanager
def open_source(path: Path, vocabulary: Path | None = None) -> Iterator[Source]:
    """Find `pretrained.params` and `vocab.json` in `path`; an archive is unpacked for as long as the block runs.

    `vocabulary` stands in for the `vocab.json` of `path`.

    Raises:
        BertSnliError: `path` does not exist, or one of the two files is not there, or is there twice.
    """
    _check_path(path)
    if vocabulary:
        _check_path(vocabulary)
    if path.is_dir():
        yield _beside(path / PARAMS, vocabulary)
    elif not path.is_file():
        raise BertSnliError(
            f"{path}: no such file or folder; give bert.small, bert.base, a folder or zip with {PARAMS} and "
            f"{VOCABULARY}, or a params file"
        )
    elif _is_archive(path):
        with tempfile.TemporaryDirectory() as folder:
            yield _unpack(path, Path(folder), vocabulary)
    else:
        yield _beside(path, vocabulary)


def _check_path(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError:  # said better below
        pass
    except OSError as error:
        raise BertSnliError(f"{path}: {error.strerror}; give a path that can be read") from error


def _beside(params: Path, vocabulary: Path | None) -> Source:
    source = Source(params, vocabulary or params.parent / VOCABULARY)
    beside = "give one that is there" if vocabulary else "name the one that was saved with the weights with --vocab"
    for file, remedy in (
        (source.params, f"a checkpoint is {PARAMS} with {VOCABULARY} beside it"),
        (source.vocabulary, beside),
    ):
        if not file.is_file():
            raise BertSnliError(f"{file}: not found; {remedy}")
    return source


def _is_archive(path: Path) -> bool:
    # PyTorch's own checkpoints are zip files too; theirs hold a data.pkl.
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(name).name for name in archive.namelist()]
    except Exception as error:  # zipfile raises nearly any type on a damaged file
        raise BertSnliError(f"{path}: damaged zip ({error}); get the file again") from error
    if any(name.endswith(".npy") for name in names):
        raise BertSnliError(f"{path}: an .npz, as MXNet 2 writes; save the network with MXNet 1 or PyTorch")
    return "data.pkl" not in names


def _unpack(path: Path, folder: Path, vocabulary: Path | None) -> Source:
    """Copy the two members, and nothing else, to fixed names in `folder`: no path of the archive's is followed."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_member(member, path)
            for wanted in (PARAMS,) if vocabulary else (PARAMS, VOCABULARY):
                members = [info for info in archive.infolist() if PurePosixPath(info.filename).name == wanted]
                if len(members) != 1:
                    raise BertSnliError(
                        f"{path}: holds {len(members)} files named {wanted}; an archive of the book's holds one "
                        "(unpack it and give the params file, with --vocab)"
                    )
                if members[0].file_size > LARGEST_EXPANSION * path.stat().st_size + SMALL_BYTES:
                    raise BertSnliError(f"{path}: {wanted} would take {members[0].file_size:,} bytes; not unpacked")
                with archive.open(members[0]) as source, (folder / wanted).open("wb") as target:
                    shutil.copyfileobj(source, target)
    except OSError as error:
        if error.errno is None:  # the decompressor's
            raise BertSnliError(f"{path}: damaged zip ({error}); get the file again") from error
        raise BertSnliError(f"{path}: cannot be unpacked into {folder} ({error.strerror}); set TMPDIR") from error
    except BertSnliError:
        raise
    except Exception as error:  # zipfile raises nearly any type on a damaged file
        raise BertSnliError(f"{path}: damaged or unsupported zip ({error}); get the file again") from error
    return Source(folder / PARAMS, vocabulary or folder / VOCABULARY, archive=path)


def _check_member(member: zipfile.ZipInfo, path: Path) -> None:
    name = member.filename
    outside = ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive
    if outside or stat.S_ISLNK(member.external_attr >> 16):
        raise BertSnliError(
            f"{path}: its member {name[:80]!r} points outside; no archive of the book's does, get another"
        )
