"""MXNet's file format written once more, by hand and in every version, to test the reader against."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

LIST = 0x112
FLAGS = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6, "bool": 7}
MAGICS = {"V1": 0xF993FAC8, "V2": 0xF993FAC9, "V3": 0xF993FACA}


def encode_array(array: np.ndarray, version: str = "V3", device: tuple[int, int] = (1, 0)) -> bytes:
    """One array of the list; V0 has its number of dimensions for a magic, and dimensions of 32 bits."""
    data = array.tobytes()
    tail = struct.pack("<iii", *device, FLAGS[array.dtype.name]) + data
    if version == "V0":
        return struct.pack(f"<{1 + array.ndim}I", array.ndim, *array.shape) + tail
    storage = b"" if version == "V1" else struct.pack("<i", 0)
    shape = struct.pack(f"<i{array.ndim}q", array.ndim, *array.shape)
    return struct.pack("<I", MAGICS[version]) + storage + shape + tail


def encode_list(arrays: list[bytes], names: list[str]) -> bytes:
    """A whole file."""
    encoded = [name.encode() for name in names]
    head = struct.pack("<QQQ", LIST, 0, len(arrays)) + b"".join(arrays)
    return head + struct.pack("<Q", len(names)) + b"".join(struct.pack("<Q", len(name)) + name for name in encoded)


def write_v3(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """What Gluon's `save_parameters` writes under numpy semantics."""
    path.write_bytes(encode_list([encode_array(array) for array in arrays.values()], list(arrays)))


def rename_to_mxnet(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PyTorch's names of the book's tensors → MXNet's."""

    def renamed(name: str) -> str:
        name = name.replace("hidden.0.", "hidden.").replace("classifier.2.", "classifier.1.")
        for torch_name, mxnet_name in (("mlp.2.", "mlp.1."), ("mlp.3.", "mlp.2.")):
            if f"mlm.{torch_name}" in name:
                is_norm = torch_name == "mlp.2."
                name = name.replace(torch_name, mxnet_name)
                return _norm(name) if is_norm else name
        return _norm(name) if ".ln." in name else name

    return {renamed(name): array for name, array in state.items()}


def _norm(name: str) -> str:
    return name.replace(".weight", ".gamma").replace(".bias", ".beta")
