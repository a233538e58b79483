"""Small checkpoints in d2l format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

SPECIALS = ["<unk>", "<pad>", "<mask>", "<cls>", "<sep>"]


def small_vocabulary(size: int = 50) -> list[str]:
    """Return the special tokens and `w0`, `w1`, ..., in total `size` tokens."""
    return SPECIALS + [f"w{number}" for number in range(size - len(SPECIALS))]


def save_d2l_checkpoint(folder: Path, state_dict: dict, vocabulary: list[str]) -> Path:
    """Write `pretrained.params` and `vocab.json`, the files of a d2l checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state_dict, folder / "pretrained.params")
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return folder


def change_state_dict(change_dict: Callable[[dict], None]) -> Callable[[Path], None]:
    """Return a function that applies `change_dict` to the `state_dict` saved in a checkpoint folder."""

    def change(folder: Path) -> None:
        state = torch.load(folder / "pretrained.params", weights_only=True)
        change_dict(state)
        torch.save(state, folder / "pretrained.params")

    return change
