"""`model.safetensors`, written a chunk at a time: `safetensors` itself wants all tensors in memory at once."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from conversion.checkpoint import TensorInfo

SAFETENSORS_DTYPES = {"float16": "F16", "float32": "F32", "float64": "F64"}


class WeightsFile:
    """A safetensors file (u64 header length · JSON header · numbers) whose `tensors` are appended in their order."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorInfo]):
        self._file = path.open("wb")
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, info in tensors.items():
            start, end = end, end + info.nbytes
            header[name] = {
                "dtype": SAFETENSORS_DTYPES[info.dtype],
                "shape": info.shape,
                "data_offsets": (start, end),
            }
        encoded = json.dumps(header).encode("utf-8")
        encoded += b" " * (-len(encoded) % 8)  # the numbers begin at a multiple of 8
        self._file.write(struct.pack("<Q", len(encoded)) + encoded)

    def append(self, array: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
