"""Read and write MXNet's `.params` files ("NDArray lists") with numpy.

    file  = u64 0x112 · u64 0 · u64 n · n arrays · u64 m · m × (u64 length, utf-8 bytes)
    array = u32 magic · i32 storage · i32 ndim · ndim × i64 · i32 device type · i32 device number · i32 dtype · values

Little-endian, C order, no padding. V3 (numpy shapes; d2l's files) and V2 differ in how they mark an array without data.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bert_snli.errors import BertSnliError
from conversion.checkpoint import Checkpoint
from conversion.d2l_layout import MXNET

MAGIC = struct.pack("<Q", 0x112)
V2, V3 = 0xF993FAC9, 0xF993FACA
DTYPES = ("<f4", "<f8", "<f2", "|u1", "<i4", "|i1", "<i8", "|b1")
MAX_DIMENSIONS = 32


class _Reader:
    """Reads a memory-mapped file, and checks that each size in the file fits into it."""

    def __init__(self, path: Path):
        self.path = path
        self.content = np.asarray(np.memmap(path, np.uint8, "r"))
        self.position = 0

    def error(self, problem: str) -> BertSnliError:
        return BertSnliError(f"{self.path}: {problem}, at byte {self.position:,}; get the file again")

    def read(self, count: int) -> np.ndarray:
        """Return the next `count` bytes, mapped to the file."""
        if count > self.remaining:
            raise self.error(f"ends too early ({count:,} bytes expected, {self.remaining:,} found)")
        self.position += count
        return self.content[self.position - count : self.position]

    @property
    def remaining(self) -> int:
        return len(self.content) - self.position

    def read_number(self, code: str) -> int:
        """Read a number. `code` is its type, as in the module `struct`."""
        return struct.unpack("<" + code, self.read(struct.calcsize(code)).tobytes())[0]


def read_mxnet_checkpoint(path: Path) -> Checkpoint:
    """Read a file that Gluon's `save_parameters` or `mx.nd.save` wrote. Arrays are mapped to the file."""
    reader = _Reader(path)
    reader.read(16)  # the magic, and a reserved word
    arrays = [_read_array(reader) for _ in range(reader.read_number("Q"))]
    names = [reader.read(reader.read_number("Q")).tobytes() for _ in range(reader.read_number("Q"))]
    saved_names = [name.decode(errors="replace") for name in names]
    if reader.remaining:
        raise reader.error(f"{reader.remaining:,} bytes after the end")
    if not arrays or len(saved_names) != len(arrays):
        problem = f"{len(saved_names)} names for {len(arrays)} arrays"
        raise BertSnliError(f"{path}: {problem}; save the network with net.save_parameters(path)")
    checkpoint = Checkpoint(path, MXNET, {}, {})
    for saved_name, array in zip(saved_names, arrays, strict=True):
        name = saved_name.removeprefix("arg:").removeprefix("aux:")  # MXNet's `Module` adds these prefixes
        if name in checkpoint.arrays:
            raise BertSnliError(f"{path}: two arrays have the name {name[:80]!r}; get the file again")
        if array is None:
            raise BertSnliError(f"{path}: {name[:80]!r} has no data; initialise the network before it is saved")
        checkpoint.arrays[name], checkpoint.saved_names[name] = array, saved_name
    return checkpoint


def _read_array(reader: _Reader) -> np.ndarray | None:
    """Read the next array as a memory map of the file. Return None if the array has no data."""
    magic = reader.read_number("I")
    if magic not in (V2, V3):
        raise reader.error(f"an array that is not in MXNet's format V2 or V3 (its first word is {magic:#x})")
    if reader.read_number("i") != 0:
        raise BertSnliError(f"{reader.path}: holds a sparse array; convert it with tostype('default') and save again")
    ndim = reader.read_number("i")
    if ndim == (-1 if magic == V3 else 0):
        return None
    if not 0 <= ndim <= MAX_DIMENSIONS:
        raise reader.error(f"an array of {ndim:,} dimensions")
    shape = tuple(reader.read_number("q") for _ in range(ndim))
    if min(shape, default=0) < 0 or math.prod(filter(None, shape)) > len(reader.content):
        raise reader.error(f"an array of the impossible shape {shape}")
    reader.read(8)  # the device
    flag = reader.read_number("i")
    if not 0 <= flag < len(DTYPES):
        raise reader.error(f"an array of the unknown dtype {flag}")
    dtype = np.dtype(DTYPES[flag])
    return reader.read(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


def write_mxnet_checkpoint(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` as `net.save_parameters(path)` does under `npx.set_np()`: V3, dense, from the CPU."""
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<QQ", 0, len(arrays)))
        for array in arrays.values():
            flag = DTYPES.index(array.dtype.str)
            file.write(struct.pack(f"<Iii{array.ndim}qiii", V3, 0, array.ndim, *array.shape, 1, 0, flag))
            file.write(array.tobytes())
        file.write(struct.pack("<Q", len(arrays)))
        for name in arrays:
            encoded = name.encode("utf-8")
            file.write(struct.pack("<Q", len(encoded)) + encoded)
