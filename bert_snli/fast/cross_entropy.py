"""The cross-entropy of a linear layer over a large vocabulary, without ever holding all of its logits.

PyTorch's `nn.functional.linear_cross_entropy` (2.13) does this too; on a CPU it takes two to four times as long at our
sizes, and it does not say how many answers are right.

Shape suffixes: P rows, D hidden size, V words of the vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

IGNORED = -100
LOGITS_AT_ONCE = 2**24  # numbers: 64 MiB, and as much for their probabilities
ROWS_AT_ONCE = 512  # on a CPU at most: its caches hold the logits of a vocabulary that is not too large


def linear_cross_entropy(
    hidden_PD: torch.Tensor, linear: nn.Linear, labels_P: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the cross-entropies of `linear(hidden_PD)`, and in how many rows no logit is above that of the label.

    Rows labelled −100 do not count. Products are of autocast's type where that is on.
    """
    return LinearCrossEntropy.apply(hidden_PD, linear.weight, linear.bias, labels_P, torch.is_grad_enabled())


class LinearCrossEntropy(torch.autograd.Function):
    """Takes its gradients on the way forward, a few rows at a time: the logits are needed for both."""

    @staticmethod
    def forward(ctx, hidden_PD, weight_VD, bias_V, labels_P, with_gradient: bool):
        device = hidden_PD.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_PD.dtype
        inputs_PD, words_VD = hidden_PD.to(kind), weight_VD.to(kind)
        loss, right = hidden_PD.new_zeros((), dtype=bias_V.dtype), labels_P.new_zeros(())
        gradients = None
        # The gradients are not scaled yet: in fp16, p - y below 3e-8 would be rounded to 0.
        factors = (hidden_PD.float(), weight_VD.float()) if kind == torch.float16 else (inputs_PD, words_VD)
        if with_gradient:
            gradients = Gradients(torch.empty_like(hidden_PD), torch.zeros_like(weight_VD), torch.zeros_like(bias_V))
        size = max(1, LOGITS_AT_ONCE // len(weight_VD))
        if device == "cpu":
            size = min(size, ROWS_AT_ONCE)
        with torch.autocast(device, enabled=False):
            for begin in range(0, len(labels_P), size):
                rows = slice(begin, begin + size)
                counted_P1, targets_P1 = labels_P[rows, None] != IGNORED, labels_P[rows, None].clamp(min=0)
                logits_PV = torch.addmm(bias_V.to(kind), inputs_PD[rows], words_VD.t()).to(bias_V.dtype)
                probabilities_PV = logits_PV.softmax(dim=-1)
                wanted_P1, largest_P1 = logits_PV.gather(1, targets_P1), logits_PV.amax(dim=-1, keepdim=True)
                right += ((wanted_P1 == largest_P1) & counted_P1).sum()
                # The largest probability says what they were divided by; that of the label may have become 0.
                losses_P1 = (largest_P1 - wanted_P1) - probabilities_PV.amax(dim=-1, keepdim=True).log()
                loss += (losses_P1 * counted_P1).sum()
                if gradients is not None:
                    ones_P1 = counted_P1.to(probabilities_PV.dtype)  # a product with booleans takes four times as long
                    surplus_PV = probabilities_PV.mul_(ones_P1).scatter_add_(1, targets_P1, -ones_P1)
                    gradients.add(rows, surplus_PV, *factors)
        if gradients is not None:
            ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, _):
        return (*(part * gradient for part in ctx.saved_tensors), None, None)


class Gradients(NamedTuple):
    """Of a sum of cross-entropies."""

    hidden_PD: torch.Tensor
    weight_VD: torch.Tensor
    bias_V: torch.Tensor

    def add(self, rows: slice, surplus_PV: torch.Tensor, inputs_PD: torch.Tensor, words_VD: torch.Tensor) -> None:
        """Of these rows, from what their probabilities have too much; products are of the type of `words_VD`."""
        self.bias_V.add_(surplus_PV.sum(dim=0))
        rounded_PV = surplus_PV.to(words_VD.dtype)
        self.hidden_PD[rows] = rounded_PV @ words_VD
        if rounded_PV.dtype == self.weight_VD.dtype:
            self.weight_VD.addmm_(rounded_PV.t(), inputs_PD[rows])
        else:
            self.weight_VD.add_(rounded_PV.t() @ inputs_PD[rows])
