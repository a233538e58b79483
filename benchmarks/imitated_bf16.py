"""Run `bert-snli finetune` with matrix products rounded to bf16 on a machine without bf16, to measure the accuracy.

    python benchmarks/imitated_bf16.py OPTIONS OF FINETUNE

The operands and the result of each product in the forward and backward pass are rounded to bf16, and sums are in fp32,
as in bf16 hardware. Everything else is fp32. Autocast also computes softmax and elementwise operations in bf16.
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
    """Round a tensor to bf16. Return it in fp32."""
    return value.bfloat16().float() if isinstance(value, torch.Tensor) else value


class ImitatedBF16(TorchDispatchMode):
    """Rounds the operands and the result of each product."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS and args[-1].dtype == torch.float32:
            return rounded(function(*map(rounded, args), **(kwargs or {})))
        return function(*args, **(kwargs or {}))


if __name__ == "__main__":
    with ImitatedBF16():
        sys.exit(finetune.main([*sys.argv[1:], "--mixed_precision", "no"]))
