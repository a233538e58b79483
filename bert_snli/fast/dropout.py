"""Dropout that costs less than the matrix products around it, on a CPU too."""

from __future__ import annotations

import torch
from torch import nn

LEVELS = 2**16  # a rate is rounded to so many steps on a CPU


def dropped(x: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """`x` with a share `rate` of its numbers set to zero and the others scaled up (d2l 5.6); `x` itself in evaluation.

    On a CPU the rate is rounded to the next 65,536th: 16 random bits decide on a number, where PyTorch draws 32 for
    each and one after the other. They come from PyTorch's generator, so `torch.manual_seed` fixes them.
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
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        ctx.kept = (draws.view(torch.int16)[: x.numel()] >= zeros - LEVELS // 2).view(x.shape)
        ctx.scale = LEVELS / (LEVELS - zeros)
        return (x * ctx.kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (gradient * ctx.kept).mul_(ctx.scale), None
