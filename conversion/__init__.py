"""Convert BERT checkpoints between d2l and Hugging Face, and prove that both give the same results.

The functions are imported when they are first used, because PyTorch and transformers take seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conversion.certificate import verify_conversion
    from conversion.convert import convert_checkpoint
    from conversion.export import export_checkpoint

__all__ = ["convert_checkpoint", "export_checkpoint", "verify_conversion"]
_MODULES = dict(zip(__all__, ("convert", "export", "certificate"), strict=True))


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        importlib.import_module("bert_snli.modeling")  # registers the Auto classes
        return getattr(importlib.import_module(f"conversion.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
