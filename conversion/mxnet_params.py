"""Reader and writer of MXNet's `.params` files ("NDArray lists"), with numpy alone.

    file  = u64 0x112 · u64 0 · u64 n · n arrays · u64 m · m × (u64 length, utf-8 bytes)
    array = u32 magic · [i32 storage] · shape · i32 device type · i32 device number · i32 dtype · numbers

Little-endian throughout, C order, no padding. Magics V3 (numpy shapes, what the book's files are), V2 and V1 differ in
the storage word and in how an array without data is told; the oldest form, V0, has the number of dimensions there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bert_snli.errors import BertSnliError
from conversion.checkpoint import Checkpoint, TensorInfo
from conversion.d2l_layout import MXNET

MAGIC = struct.pack("<Q", 0x112)
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DTYPES = ("<f4", "<f8", "<f2", "|u1", "<i4", "|i1", "<i8", "|b1")
MAX_DIMENSIONS = 32
MAX_ARRAYS = 100_000
MAX_NAME_BYTES = 4096


class _Reader:
    """Numbers from a file, none of which is believed before the file has been found long enough for it."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file
        self.size = path.stat().st_size
        self.position = 0

    def bad(self, what: str) -> BertSnliError:
        return BertSnliError(f"{self.path}: {what}, at byte {self.position:,}; get the file again")

    def skip(self, count: int, what: str) -> int:
        """Pass over `count` bytes, and say where they begin."""
        start = self.position
        if count > self.size - start:
            raise self.bad(f"ends within {what} ({count:,} bytes announced, {self.size - start:,} there)")
        self.position += count
        return start

    def take(self, count: int, what: str) -> bytes:
        self.file.seek(self.skip(count, what))
        return self.file.read(count)

    def number(self, code: str, what: str) -> int:
        return struct.unpack("<" + code, self.take(struct.calcsize(code), what))[0]

    def count(self, what: str) -> int:
        number = self.number("Q", f"the number of {what}")
        if number > MAX_ARRAYS:
            raise self.bad(f"{number:,} {what}, where a model of the book's has some hundreds")
        return number


def read_mxnet_checkpoint(path: Path) -> Checkpoint:
    """Read a file that Gluon's `save_parameters` wrote, or `mx.nd.save`; arrays are mapped into memory, not read.

    Raises:
        BertSnliError: damaged, sparse, without names or without data.
    """
    with path.open("rb") as file:
        reader = _Reader(path, file)
        reader.skip(16, "the header")  # the magic, and a reserved word
        arrays = [_read_array(reader) for _ in range(reader.count("arrays"))]
        names = [_read_name(reader) for _ in range(reader.count("names"))]
        if reader.position != reader.size:
            raise reader.bad(f"{reader.size - reader.position:,} bytes after the end")
    if not arrays:
        raise BertSnliError(f"{path}: holds no arrays; save the network with net.save_parameters(path)")
    if not names:
        raise BertSnliError(f"{path}: arrays without names; save them with net.save_parameters(path)")
    if len(names) != len(arrays):
        raise BertSnliError(f"{path}: {len(names)} names for {len(arrays)} arrays; get the file again")
    tensors, places = {}, {}
    for saved, place in zip(names, arrays, strict=True):
        name = saved.removeprefix("arg:").removeprefix("aux:")  # as a Module writes them
        if name in tensors:
            raise BertSnliError(f"{path}: two arrays of the name {name[:80]!r}; get the file again")
        if place is None:
            raise BertSnliError(f"{path}: {name[:80]!r} has no data; initialise the network before it is saved")
        dtype, shape, _ = place
        tensors[name] = TensorInfo(shape, np.dtype(dtype).name, saved)
        places[name] = place

    def read(wanted: Iterable[str]) -> dict[str, np.ndarray]:
        return {name: _map(path, *places[name]) for name in wanted}

    return Checkpoint(path, MXNET, tensors, read)


def _read_array(reader: _Reader) -> tuple[str, tuple[int, ...], int] | None:
    """dtype, shape and place of the next array's numbers; `None` for an array without data."""
    magic = reader.number("I", "an array")
    if magic in (V2, V3) and reader.number("i", "an array's storage type") != 0:
        raise BertSnliError(f"{reader.path}: holds a sparse array; convert it with tostype('default') and save again")
    if magic in (V1, V2, V3):
        ndim, code = reader.number("i", "an array's number of dimensions"), "q"
    else:
        ndim, code = magic, "I"
    if magic == V3 and ndim == -1 or magic != V3 and ndim == 0:
        return None
    if not 0 <= ndim <= MAX_DIMENSIONS:
        raise reader.bad(f"no array of MXNet's (its first word is {magic:#x}, its number of dimensions {ndim})")
    shape = tuple(reader.number(code, "an array's shape") for _ in range(ndim))
    if any(length < 0 for length in shape) or (0 in shape and max(shape) > reader.size):
        raise reader.bad(f"an array of the impossible shape {shape}")
    reader.skip(8, "an array's device")  # wherever it lay, its numbers are here
    flag = reader.number("i", "an array's dtype")
    if not 0 <= flag < len(DTYPES):
        raise reader.bad(f"an array of the unknown dtype {flag}")
    count = 1
    for length in shape:
        count *= length
    return DTYPES[flag], shape, reader.skip(count * np.dtype(DTYPES[flag]).itemsize, f"an array of shape {shape}")


def _read_name(reader: _Reader) -> str:
    length = reader.number("Q", "a name's length")
    if length > MAX_NAME_BYTES:
        raise reader.bad(f"a name of {length:,} bytes")
    try:
        return reader.take(length, "a name").decode("utf-8")
    except UnicodeDecodeError as error:
        raise reader.bad("a name that is not UTF-8") from error


def _map(path: Path, dtype: str, shape: tuple[int, ...], start: int) -> np.ndarray:
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset=start, shape=shape or (1,)).reshape(shape)


def write_mxnet_checkpoint(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` as `net.save_parameters(path)` does under `npx.set_np()`: V3, dense, from the CPU."""
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<QQ", 0, len(arrays)))
        for array in arrays.values():
            flag = DTYPES.index(array.dtype.str)
            file.write(struct.pack(f"<Iii{array.ndim}qiii", V3, 0, array.ndim, *array.shape, 1, 0, flag))
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        file.write(struct.pack("<Q", len(arrays)))
        for name in arrays:
            encoded = name.encode("utf-8")
            file.write(struct.pack("<Q", len(encoded)) + encoded)
