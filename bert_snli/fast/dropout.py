"""Dropout that costs less than the matrix products around it, on a CPU too."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

LEVELS = 2**16  # a rate is rounded to so many steps on a CPU


def dropped(x: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """`x` with a share `rate` of its numbers set to zero and the others scaled up (d2l 5.6); `x` itself in evaluation.

    On a CPU the rate is rounded to the next 65,536th: 16 random bits decide on a number, where PyTorch draws 32 for
    each and one after the other. `torch.manual_seed` fixes them.
    """
    if not training or rate == 0:
        return x
    if x.device.type != "cpu":
        return nn.functional.dropout(x, rate)
    return SixteenBitDropout.apply(x, rate)


class SixteenBitDropout(torch.autograd.Function):
    """Dropout on a CPU, from four decisions in each 64-bit draw."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, rate: float) -> torch.Tensor:
        zeros = min(round(rate * LEVELS), LEVELS - 1)
        # PyTorch's generator gives the seed; one that it is too slow for gives the draws.
        seed = int(torch.empty((), dtype=torch.int64).random_())
        draws = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.int16))[: x.numel()]
        # As numbers of the type of `x`: a product with them takes a fourth of the time of one with booleans.
        ctx.kept = torch.ge(draws, zeros - LEVELS // 2, out=x.new_empty(x.numel())).view(x.shape)
        ctx.kept *= LEVELS / (LEVELS - zeros)
        return x * ctx.kept

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.kept, None
