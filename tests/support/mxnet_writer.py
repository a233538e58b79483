"""A second writer of MXNet's file format, for its versions V2 and V3. The tests of the reader use it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

LIST = 0x112
FLAGS = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6, "bool": 7}
MAGICS = {"V2": 0xF993FAC9, "V3": 0xF993FACA}


def encode_array(array: np.ndarray, version: str = "V3", device: tuple[int, int] = (1, 0)) -> bytes:
    """Encode one array of the list."""
    shape = struct.pack(f"<Iii{array.ndim}q", MAGICS[version], 0, array.ndim, *array.shape)
    return shape + struct.pack("<iii", *device, FLAGS[array.dtype.name]) + array.tobytes()


def encode_list(arrays: list[bytes], names: list[str]) -> bytes:
    """Encode a complete file."""
    encoded = [name.encode() for name in names]
    header = struct.pack("<QQQ", LIST, 0, len(arrays)) + b"".join(arrays)
    return header + struct.pack("<Q", len(names)) + b"".join(struct.pack("<Q", len(name)) + name for name in encoded)


def write_v3(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the file that Gluon's `save_parameters` writes under numpy semantics."""
    path.write_bytes(encode_list([encode_array(array) for array in arrays.values()], list(arrays)))


def rename_to_mxnet(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename the tensors of a d2l PyTorch checkpoint as MXNet names them."""

    def rename(name: str) -> str:
        name = name.replace("hidden.0.", "hidden.").replace("classifier.2.", "classifier.1.")
        for torch_name, mxnet_name in (("mlp.2.", "mlp.1."), ("mlp.3.", "mlp.2.")):
            if f"mlm.{torch_name}" in name:
                is_norm = torch_name == "mlp.2."
                name = name.replace(torch_name, mxnet_name)
                return _rename_layer_norm(name) if is_norm else name
        return _rename_layer_norm(name) if ".ln." in name else name

    return {rename(name): array for name, array in state.items()}


def _rename_layer_norm(name: str) -> str:
    return name.replace(".weight", ".gamma").replace(".bias", ".beta")
