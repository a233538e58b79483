"""Reader and writer of MXNet's `.params` files ("NDArray lists"), with numpy alone.

    file  = u64 0x112 · u64 0 · u64 n · n arrays · u64 m · m × (u64 length, utf-8 bytes)
    array = u32 magic · [i32 storage] · shape · i32 device type · i32 device number · i32 dtype · values

Little-endian, C order, no padding. V3 (numpy shapes; d2l's files), V2 and V1 differ in the storage word and in how they
mark an array without data. The oldest version, V0, has the number of dimensions in place of the magic.
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
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DTYPES = ("<f4", "<f8", "<f2", "|u1", "<i4", "|i1", "<i8", "|b1")
MAX_DIMENSIONS = 32
MAX_ARRAYS = 100_000
MAX_NAME_BYTES = 4096


class _Reader:
    """Reads a file, which is mapped into memory, and checks that each announced size fits into it."""

    def __init__(self, path: Path):
        self.path = path
        self.content = np.asarray(np.memmap(path, np.uint8, "r"))
        self.position = 0

    def error(self, problem: str) -> BertSnliError:
        return BertSnliError(f"{self.path}: {problem}, at byte {self.position:,}; get the file again")

    def read(self, count: int, what: str) -> np.ndarray:
        """The next `count` bytes, which are mapped to the file."""
        if count > self.remaining:
            raise self.error(f"ends within {what} ({count:,} bytes announced, {self.remaining:,} there)")
        self.position += count
        return self.content[self.position - count : self.position]

    @property
    def remaining(self) -> int:
        return len(self.content) - self.position

    def read_number(self, code: str, what: str) -> int:
        """Read a number of the type that `code` names in the module `struct`."""
        return struct.unpack("<" + code, self.read(struct.calcsize(code), what).tobytes())[0]

    def read_count(self, what: str) -> int:
        number = self.read_number("Q", f"the number of {what}")
        if number > MAX_ARRAYS:
            raise self.error(f"{number:,} {what}, but a model of d2l's has some hundreds")
        return number


def read_mxnet_checkpoint(path: Path) -> Checkpoint:
    """Read a file that Gluon's `save_parameters` or `mx.nd.save` wrote. Arrays are mapped to the file."""
    reader = _Reader(path)
    reader.read(16, "the header")  # the magic, and a reserved word
    arrays = [_read_array(reader) for _ in range(reader.read_count("arrays"))]
    saved_names = [_read_name(reader) for _ in range(reader.read_count("names"))]
    if reader.remaining:
        raise reader.error(f"{reader.remaining:,} bytes after the end")
    if not arrays:
        raise BertSnliError(f"{path}: holds no arrays; save the network with net.save_parameters(path)")
    if not saved_names:
        raise BertSnliError(f"{path}: arrays without names; save them with net.save_parameters(path)")
    if len(saved_names) != len(arrays):
        raise BertSnliError(f"{path}: {len(saved_names)} names for {len(arrays)} arrays; get the file again")
    checkpoint = Checkpoint(path, MXNET, {}, {})
    for saved_name, array in zip(saved_names, arrays, strict=True):
        name = saved_name.removeprefix("arg:").removeprefix("aux:")  # a Module adds these prefixes
        if name in checkpoint.arrays:
            raise BertSnliError(f"{path}: two arrays of the name {name[:80]!r}; get the file again")
        if array is None:
            raise BertSnliError(f"{path}: {name[:80]!r} has no data; initialise the network before it is saved")
        checkpoint.arrays[name], checkpoint.saved_names[name] = array, saved_name
    return checkpoint


def _read_array(reader: _Reader) -> np.ndarray | None:
    """The next array, mapped to the file; None if it has no data."""
    magic = reader.read_number("I", "an array")
    if magic in (V2, V3) and reader.read_number("i", "an array's storage type") != 0:
        raise BertSnliError(f"{reader.path}: holds a sparse array; convert it with tostype('default') and save again")
    if magic in (V1, V2, V3):
        ndim, code = reader.read_number("i", "an array's number of dimensions"), "q"
    else:
        ndim, code = magic, "I"
    if magic == V3 and ndim == -1 or magic != V3 and ndim == 0:
        return None
    if not 0 <= ndim <= MAX_DIMENSIONS:
        raise reader.error(f"no array of MXNet's (its first word is {magic:#x}, its number of dimensions {ndim})")
    shape = tuple(reader.read_number(code, "an array's shape") for _ in range(ndim))
    if any(length < 0 for length in shape) or (0 in shape and max(shape) > len(reader.content)):
        raise reader.error(f"an array of the impossible shape {shape}")
    reader.read(8, "an array's device")
    flag = reader.read_number("i", "an array's dtype")
    if not 0 <= flag < len(DTYPES):
        raise reader.error(f"an array of the unknown dtype {flag}")
    dtype = np.dtype(DTYPES[flag])
    values = reader.read(math.prod(shape) * dtype.itemsize, f"an array of shape {shape}")
    return values.view(dtype).reshape(shape)


def _read_name(reader: _Reader) -> str:
    length = reader.read_number("Q", "a name's length")
    if length > MAX_NAME_BYTES:
        raise reader.error(f"a name of {length:,} bytes")
    try:
        return reader.read(length, "a name").tobytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise reader.error("a name that is not UTF-8") from error


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
