"""A file of named arrays, whatever wrote it: what the readers return, and which reader reads a file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bert_snli.errors import BertSnliError

CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as its file declares it; `saved_as` is its name there, prefixes such as `module.` included."""

    shape: tuple[int, ...]
    dtype: str
    saved_as: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file, by the book's names. `read(names)` opens it anew, so that its memory can be let go."""

    path: Path
    framework: str
    tensors: Mapping[str, TensorInfo]
    read: Callable[[Iterable[str]], dict[str, np.ndarray]]

    def chunks(self, names: Iterable[str]) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of `names` in order, about 64 MiB at a time: one array may be more."""
        chunk: list[str] = []
        for name in names:
            if chunk and sum(self.tensors[n].nbytes for n in (*chunk, name)) > CHUNK_BYTES:
                yield self.read(chunk)
                chunk = []
            chunk.append(name)
        if chunk:
            yield self.read(chunk)


def without_prefix(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Each of `names` → itself less `prefix`, if all have it; else as it is."""
    names = list(names)
    cut = len(prefix) if names and all(name.startswith(prefix) for name in names) else 0
    return {name: name[cut:] for name in names}


def sha256_of(array: np.ndarray) -> str:
    """SHA-256 of the array's numbers, little-endian in C order."""
    contiguous = np.ascontiguousarray(array)
    return hashlib.sha256(contiguous.reshape(-1).view(np.uint8).data).hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a params file of either framework, told apart by its first bytes.

    Raises:
        BertSnliError: it is neither, or is damaged.
    """
    from conversion.mxnet_params import MAGIC, read_mxnet_checkpoint
    from conversion.torch_checkpoint import read_torch_checkpoint

    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise BertSnliError(f"{path}: {error.strerror}; give a params file that can be read") from error
    if not start:
        raise BertSnliError(f"{path}: an empty file; get the file again")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise BertSnliError(f"{path}: a web page saved under this name; download the file itself")
    return read_mxnet_checkpoint(path) if start[:8] == MAGIC else read_torch_checkpoint(path)
