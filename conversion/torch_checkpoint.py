"""Reader and writer of the book's PyTorch checkpoints. Nothing is ever unpickled freely."""

from __future__ import annotations

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch

from bert_snli.errors import BertSnliError
from conversion.checkpoint import Checkpoint, TensorInfo, without_prefix
from conversion.d2l_layout import PYTORCH

ZIP_START = b"PK\x03\x04"
LEGACY_PICKLES = 5  # magic number, protocol, system, state_dict, keys of the storages; the numbers follow
STORAGES = "Half BFloat16 Float Double Byte Char Short Int Long Bool".split()
# All that the pickle of a state_dict names. PyTorch's safe loader knows more, `bytearray` of any size among it.
NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}Storage" for name in STORAGES),
}


def read_torch_checkpoint(path: Path) -> Checkpoint:
    """Read a `state_dict` saved by `torch.save`, zip-format or legacy, from CPU or GPU.

    Files of the zip format are mapped into memory, not read into it.

    Raises:
        BertSnliError: not a PyTorch file, damaged, holding anything but named tensors, or asking to run code.
    """
    with path.open("rb") as file:
        zipped = file.read(len(ZIP_START)) == ZIP_START
    _check_zip(path) if zipped else _check_legacy(path)
    loaded = _load(path, mmap=zipped)
    _check_tensors(loaded, path)
    names = without_prefix(loaded, "module.")  # torch.nn.DataParallel
    saved_as = {name: saved for saved, name in names.items()}

    def read(wanted: Iterable[str]) -> dict[str, np.ndarray]:
        state_dict = _load(path, mmap=True) if zipped else loaded
        return {name: _array(state_dict[saved_as[name]]) for name in wanted}

    tensors = {
        name: TensorInfo(tuple(loaded[saved].shape), str(_dtype(loaded[saved])).removeprefix("torch."), saved)
        for name, saved in saved_as.items()
    }
    return Checkpoint(path, PYTORCH, tensors, read)


def write_torch_checkpoint(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` as a `state_dict` that `load_state_dict(torch.load(path))` takes."""
    state_dict = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    with path.open("wb") as file:  # of its own, torch.save would not say that the disk is full
        torch.save(state_dict, file)


def _check_zip(path: Path) -> None:
    """What `torch.save` never writes, and `torch.load` would believe: packed or doubled members, wrong checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            sizes = sum(member.file_size for member in members)
            if any(member.compress_type != zipfile.ZIP_STORED for member in members) or sizes > path.stat().st_size:
                raise BertSnliError(f"{path}: compressed inside; torch.save never does that, save it again")
            if len({member.filename for member in members}) < len(members):
                raise BertSnliError(f"{path}: two members of one name; get the file again")
            damaged = archive.testzip()
            for member in members:
                if member.filename.endswith("data.pkl"):
                    _check_pickle(archive.open(member), path)
    except BertSnliError:
        raise
    except Exception as error:  # zipfile raises nearly any type on a damaged file
        raise BertSnliError(f"{path}: damaged or incomplete ({_reason(error)}); get the file again") from error
    if damaged:
        raise BertSnliError(f"{path}: damaged (checksum of {damaged}); get the file again")


def _check_legacy(path: Path) -> None:
    try:
        with path.open("rb") as file:
            for _ in range(LEGACY_PICKLES):
                _check_pickle(file, path)
    except BertSnliError:
        raise
    except Exception as error:  # pickletools raises nearly any type on what is no pickle
        raise BertSnliError(
            f"{path}: cannot be read as a PyTorch checkpoint ({_reason(error)}); get the file again"
        ) from error


def _check_pickle(file: IO[bytes], path: Path) -> None:
    """See, without running it, that a pickle names nothing that a `state_dict` has no use for."""
    for opcode, name, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL" and name not in NAMES:
            raise BertSnliError(
                f"{path}: not a plain PyTorch state_dict (it holds {str(name).replace(' ', '.')}); "
                "save it again with torch.save(net.state_dict(), path)"
            )


def _load(path: Path, mmap: bool) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise BertSnliError(
            f"{path}: not a plain PyTorch state_dict (PyTorch's safe loader refused it); "
            "save it again with torch.save(net.state_dict(), path)"
        ) from error
    except Exception as error:  # torch.load raises nearly any type on a damaged file
        raise BertSnliError(
            f"{path}: cannot be read as a PyTorch checkpoint ({_reason(error)}); get the file again"
        ) from error


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _check_tensors(loaded: object, path: Path) -> None:
    if not isinstance(loaded, dict) or not loaded:
        raise BertSnliError(f"{path}: holds no named tensors; save net.state_dict(), not something else")
    total = 0
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise BertSnliError(
                f"{path}: {str(name)[:80]!r} is not a tensor; save net.state_dict(), not something else"
            )
        if value.layout != torch.strided or value.device.type != "cpu":
            raise BertSnliError(f"{path}: {name[:80]!r} is not a dense tensor of numbers; save it dense")
        # A view can repeat one number a million million times: what it would take must be there.
        nbytes = value.numel() * value.element_size()
        total += nbytes
        if nbytes > value.untyped_storage().nbytes() or total > 2 * path.stat().st_size:
            raise BertSnliError(f"{path}: {name[:80]!r} claims more numbers than the file holds; save it contiguous")


def _dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype


def _array(tensor: torch.Tensor) -> np.ndarray:
    """The numbers as numpy has them; it knows no bfloat16, each of which is a float32."""
    return np.ascontiguousarray(tensor.detach().resolve_neg().to(_dtype(tensor)).numpy())
