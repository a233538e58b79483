"""Read and write d2l's PyTorch checkpoints. PyTorch's safe loader reads them, which executes no code in the file."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from bert_snli.errors import BertSnliError, one_line
from conversion.checkpoint import Checkpoint
from conversion.d2l_layout import PYTORCH

DATA_PARALLEL_PREFIX = "module."


def read_torch_checkpoint(path: Path) -> Checkpoint:
    """Read a `state_dict` saved by `torch.save`, zip or legacy format, from CPU or GPU.

    Arrays of the zip format are mapped to the file, except bfloat16, which becomes float32: numpy has no bfloat16.
    """
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _check_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        _check_tensors(state_dict, path)
        arrays = {name: _to_numpy(tensor) for name, tensor in state_dict.items()}
    except BertSnliError:
        raise
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))  # the name of a class or function
        reason = f"it contains {forbidden[1]}" if forbidden else "PyTorch's safe loader rejected it"
        raise _not_a_state_dict(path, reason) from error
    except Exception as error:  # zipfile and torch.load raise nearly any type on a damaged file
        what = f"cannot be read as a PyTorch checkpoint ({one_line(error)})"
        raise BertSnliError(f"{path}: {what}; get the file again") from error
    prefix = DATA_PARALLEL_PREFIX if all(name.startswith(DATA_PARALLEL_PREFIX) for name in arrays) else ""
    saved_names = {name.removeprefix(prefix): name for name in arrays}
    return Checkpoint(path, PYTORCH, {name: arrays[saved] for name, saved in saved_names.items()}, saved_names)


def write_torch_checkpoint(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` as a `state_dict` for `load_state_dict(torch.load(path))`."""
    state_dict = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    with path.open("wb") as file:  # if torch.save gets a path, it does not report a full disk
        torch.save(state_dict, file)


def _check_zip(path: Path) -> None:
    """Raise `BertSnliError` for a zip that `torch.save` never writes: compressed, with duplicates, or damaged."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if any(member.compress_type != zipfile.ZIP_STORED for member in members) or total > path.stat().st_size:
            raise BertSnliError(f"{path}: its members are compressed; save it again with torch.save")
        if len({member.filename for member in members}) < len(members):
            raise BertSnliError(f"{path}: two members have the same name; get the file again")
        if damaged := archive.testzip():
            raise BertSnliError(f"{path}: damaged (checksum of {damaged}); get the file again")


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
