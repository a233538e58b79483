"""Reader of the book's PyTorch checkpoints: a path in, named tensors out. Nothing is ever unpickled freely."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from bert_snli.errors import BertSnliError

MXNET_MAGIC = (0x112).to_bytes(8, "little")


def read_torch_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read a `state_dict` saved by `torch.save`, zip-format or legacy, from CPU or GPU, as tensors on the CPU.

    Raises:
        BertSnliError: not a PyTorch file, damaged, holding anything but named tensors, or asking to run code.
    """
    with path.open("rb") as file:
        if file.read(8) == MXNET_MAGIC:
            raise BertSnliError(f"{path}: an MXNet checkpoint; only PyTorch ones are read (take the .torch archive)")
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BertSnliError(
            f"{path}: not a plain PyTorch state_dict (PyTorch's safe loader refused it); "
            "save it again with torch.save(net.state_dict(), path)"
        ) from error
    except Exception as error:  # torch.load raises nearly any type on a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BertSnliError(f"{path}: cannot be read as a PyTorch checkpoint ({reason}); get the file again") from error
    if not isinstance(state_dict, dict) or not state_dict:
        raise BertSnliError(f"{path}: holds no named tensors; save net.state_dict(), not something else")
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise BertSnliError(f"{path}: {name!r} is not a tensor; save net.state_dict(), not something else")
    return dict(state_dict)
