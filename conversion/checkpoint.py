"""Find and read a d2l checkpoint: a folder, a zip file, or a params file next to its vocabulary."""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from bert_snli.errors import BertSnliError
from bert_snli.files import CONFIG, PARAMS, VOCABULARY

# Weights hardly compress, and a vocabulary compresses to about a quarter. A higher factor indicates a zip bomb.
MAX_EXPANSION = 20
SMALL_BYTES = 16 * 2**20  # files up to this size are always unpacked


@dataclass(frozen=True)
class Checkpoint:
    """The tensors in a checkpoint file."""

    path: Path
    framework: str  # `pytorch` or `mxnet`: d2l names tensors differently in each
    arrays: dict[str, np.ndarray]  # by name; they may be read-only and mapped to the file
    saved_names: dict[str, str]  # name → name in the file, which can have a prefix such as `module.`


@contextmanager
def open_checkpoint_files(source: Path, vocab_file: Path | None = None) -> Iterator[tuple[Path, Path]]:
    """Find the params file and the vocabulary of `source`. A zip file is unpacked until the block ends."""
    with ExitStack() as stack:
        params = source
        if os.path.isdir(source):  # unlike Path.is_dir, it never raises
            params = source / PARAMS
            if (source / CONFIG).is_file() and not params.is_file():
                raise BertSnliError(f"{source}: already a model folder; use it directly, or give a d2l checkpoint")
        elif not os.path.isfile(source):
            remedy = f"give bert.small, bert.base, a folder or zip with {PARAMS} and {VOCABULARY}, or a params file"
            raise BertSnliError(f"{source}: no such file or folder, or not readable; {remedy}")
        elif zipfile.is_zipfile(source):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            params = _unpack(source, folder, (PARAMS,) if vocab_file else (PARAMS, VOCABULARY))
        vocabulary = vocab_file or params.parent / VOCABULARY
        if not os.path.isfile(params):
            raise BertSnliError(f"{params}: not found; give a folder with {PARAMS} and {VOCABULARY}")
        if not os.path.isfile(vocabulary):
            raise BertSnliError(f"{vocabulary}: not found; set vocab_file to the vocabulary saved with these weights")
        yield params, vocabulary


def _unpack(path: Path, folder: Path, names: tuple[str, ...]) -> Path:
    """Unpack the files `names` and return the params file. A PyTorch checkpoint, itself a zip, is not unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(PurePosixPath(name).name == "data.pkl" for name in archive.namelist()):
                return path
            for name in names:
                _unpack_file(archive, name, path, folder)
    except BertSnliError:
        raise
    except Exception as error:  # zipfile raises nearly any type on a damaged file
        if isinstance(error, OSError) and error.errno:
            raise BertSnliError(f"{path}: cannot be unpacked to {folder} ({error.strerror}); set TMPDIR") from error
        raise BertSnliError(f"{path}: damaged or unsupported zip ({error}); get the file again") from error
    return folder / PARAMS


def _unpack_file(archive: zipfile.ZipFile, name: str, path: Path, folder: Path) -> None:
    """Unpack the only member called `name` to `folder / name`, so that paths in the archive have no effect."""
    members = [info for info in archive.infolist() if PurePosixPath(info.filename).name == name]
    if len(members) != 1:
        raise BertSnliError(f"{path}: has {len(members)} files named {name}; unpack it and give the folder")
    if members[0].file_size > MAX_EXPANSION * path.stat().st_size + SMALL_BYTES:
        raise BertSnliError(f"{path}: {name} would unpack to {members[0].file_size:,} bytes; unpack it yourself")
    with archive.open(members[0]) as packed, (folder / name).open("wb") as target:
        shutil.copyfileobj(packed, target)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a params file of PyTorch or MXNet. The first bytes identify the framework."""
    from conversion.mxnet_params import MAGIC, read_mxnet_checkpoint
    from conversion.torch_checkpoint import read_torch_checkpoint

    try:
        with path.open("rb") as file:
            first_bytes = file.read(512)
    except OSError as error:
        raise BertSnliError(f"{path}: {error.strerror}; give a params file that can be read") from error
    if not first_bytes:
        raise BertSnliError(f"{path}: the file is empty; get it again")
    if first_bytes.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise BertSnliError(f"{path}: is a web page and not a checkpoint; download the checkpoint file")
    return read_mxnet_checkpoint(path) if first_bytes[:8] == MAGIC else read_torch_checkpoint(path)
