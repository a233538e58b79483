"""Read and write d2l's PyTorch checkpoints. A pickle is checked before PyTorch's safe loader reads it."""

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch

from bert_snli.errors import BertSnliError, one_line
from conversion.checkpoint import Checkpoint
from conversion.d2l_layout import PYTORCH

ZIP_MAGIC = b"PK\x03\x04"
DATA_PARALLEL_PREFIX = "module."
LEGACY_PICKLES = 5  # magic number, protocol, system, state_dict, keys of the storages; then raw numbers
STORAGES = "Half BFloat16 Float Double Byte Char Short Int Long Bool".split()
# The globals that the pickle of a state_dict needs. PyTorch's safe loader allows more, such as a huge `bytearray`.
ALLOWED_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}Storage" for name in STORAGES),
}


def read_torch_checkpoint(path: Path) -> Checkpoint:
    """Read a `state_dict` saved by `torch.save`, zip or legacy format, from CPU or GPU.

    Arrays of the zip format are mapped to the file, except bfloat16, which becomes float32: numpy has no bfloat16.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
            file.seek(0)
            if is_zip:
                _check_zip(file, path)
            else:
                for _ in range(LEGACY_PICKLES):
                    _check_pickle(file, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except BertSnliError:
        raise
    except pickle.UnpicklingError as error:
        raise _not_a_state_dict(path, "PyTorch's safe loader rejected it") from error
    except Exception as error:  # zipfile, pickletools and torch.load raise nearly any type on a damaged file
        what = f"cannot be read as a PyTorch checkpoint ({one_line(error)})"
        raise BertSnliError(f"{path}: {what}; get the file again") from error
    _check_tensors(state_dict, path)
    has_prefix = all(name.startswith(DATA_PARALLEL_PREFIX) for name in state_dict)
    saved_names = {name.removeprefix(DATA_PARALLEL_PREFIX) if has_prefix else name: name for name in state_dict}
    arrays = {name: _to_numpy(state_dict[saved]) for name, saved in saved_names.items()}
    return Checkpoint(path, PYTORCH, arrays, saved_names)


def write_torch_checkpoint(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` as a `state_dict` for `load_state_dict(torch.load(path))`."""
    state_dict = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    with path.open("wb") as file:  # if torch.save gets a path, it does not report a full disk
        torch.save(state_dict, file)


def _check_zip(file: IO[bytes], path: Path) -> None:
    """Raise `BertSnliError` for a zip that `torch.save` never writes: compressed, with duplicates, or damaged."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if any(member.compress_type != zipfile.ZIP_STORED for member in members) or total > path.stat().st_size:
            raise BertSnliError(f"{path}: its members are compressed; save it again with torch.save")
        if len({member.filename for member in members}) < len(members):
            raise BertSnliError(f"{path}: two members have the same name; get the file again")
        if damaged := archive.testzip():
            raise BertSnliError(f"{path}: damaged (checksum of {damaged}); get the file again")
        for member in members:
            if member.filename.endswith("data.pkl"):
                _check_pickle(archive.open(member), path)


def _check_pickle(file: IO[bytes], path: Path) -> None:
    """Check the globals in a pickle without running it."""
    for opcode, name, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL" and name not in ALLOWED_GLOBALS:
            raise _not_a_state_dict(path, f"it contains {str(name).replace(' ', '.')}")


def _check_tensors(state_dict: object, path: Path) -> None:
    entries = state_dict.items() if isinstance(state_dict, dict) else ()
    if not entries or not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in entries):
        raise _not_a_state_dict(path, "it contains objects that are not named tensors")
    total = 0
    for name, value in entries:
        # An expanded view may have 10^12 elements but only one number in the file.
        nbytes = value.numel() * value.element_size()
        total += nbytes
        if nbytes > value.untyped_storage().nbytes() or total > 2 * path.stat().st_size:
            raise BertSnliError(f"{path}: {name[:80]!r} claims more numbers than the file has; save it as contiguous")


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    dtype = torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype
    return tensor.detach().resolve_neg().to(dtype).numpy()


def _not_a_state_dict(path: Path, reason: str) -> BertSnliError:
    return BertSnliError(
        f"{path}: not a plain PyTorch state_dict ({reason}); save it again with torch.save(net.state_dict(), path)"
    )
