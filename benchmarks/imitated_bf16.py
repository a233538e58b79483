"""`bert-snli finetune` with its matrix products rounded to bf16, on a machine that has none: where does it end?

    python benchmarks/imitated_bf16.py OPTIONS OF FINETUNE

Operands and results of every product, on the way forward and back, are rounded to bf16 and its sums are taken in fp32,
as units for bf16 do. The rest is fp32, where autocast keeps more in bf16 (softmax and what stands between products).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path[0] = str(Path(__file__).resolve().parents[1])  # in this folder, `conversion` is a benchmark
from bert_snli import finetune

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default)


def rounded(value):
    """A tensor in fp32 with bf16's numbers."""
    return value.bfloat16().float() if isinstance(value, torch.Tensor) else value


class ImitatedBF16(TorchDispatchMode):
    """Rounds before and after each product."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS and args[-1].dtype == torch.float32:
            return rounded(function(*map(rounded, args), **(kwargs or {})))
        return function(*args, **(kwargs or {}))


if __name__ == "__main__":
    with ImitatedBF16():
        sys.exit(finetune.main([*sys.argv[1:], "--mixed_precision", "no"]))
