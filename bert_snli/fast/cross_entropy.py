"""The cross-entropy of a linear layer over a large vocabulary, without ever holding all of its logits.

PyTorch's `nn.functional.linear_cross_entropy` (2.13) does this too; on a CPU it takes two to four times as long at our
sizes, and it does not say how many answers are right.

Shape suffixes: P rows, D hidden size, V words of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn

IGNORED = -100
LOGITS_AT_ONCE = 2**24  # numbers: 64 MiB


def linear_cross_entropy(
    hidden_PD: torch.Tensor, linear: nn.Linear, labels_P: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the cross-entropies of `linear(hidden_PD)` and how many rows have their label as the largest logit.

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
        gradients = [torch.empty_like(hidden_PD), torch.zeros_like(weight_VD), torch.zeros_like(bias_V)]
        size = max(1, LOGITS_AT_ONCE // len(weight_VD))
        with torch.autocast(device, enabled=False):
            for begin in range(0, len(labels_P), size):
                rows = slice(begin, begin + size)
                counted_P, targets_P1 = labels_P[rows] != IGNORED, labels_P[rows].clamp(min=0)[:, None]
                logits_PV = torch.addmm(bias_V.to(kind), inputs_PD[rows], words_VD.t()).to(bias_V.dtype)
                right += (logits_PV.argmax(dim=-1) == labels_P[rows]).sum()
                log_shares_PV = logits_PV.log_softmax(dim=-1)
                loss -= (log_shares_PV.gather(1, targets_P1)[:, 0] * counted_P).sum()
                if with_gradient:
                    surplus_PV = log_shares_PV.exp_()
                    surplus_PV.scatter_add_(1, targets_P1, -torch.ones_like(targets_P1, dtype=surplus_PV.dtype))
                    surplus_PV *= counted_P[:, None]
                    _add_gradients(gradients, rows, surplus_PV, inputs_PD, words_VD)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    def backward(ctx, gradient, _):
        return (*(part * gradient for part in ctx.saved_tensors), None, None)


def _add_gradients(
    gradients: list[torch.Tensor],
    rows: slice,
    surplus_PV: torch.Tensor,
    inputs_PD: torch.Tensor,
    words_VD: torch.Tensor,
) -> None:
    """Those of hidden states, weight and bias, from what the probabilities of `rows` have too much."""
    of_hidden_PD, of_weight_VD, of_bias_V = gradients
    of_bias_V += surplus_PV.sum(dim=0)
    rounded_PV = surplus_PV.to(words_VD.dtype)
    of_hidden_PD[rows] = rounded_PV @ words_VD
    if rounded_PV.dtype == of_weight_VD.dtype:
        of_weight_VD.addmm_(rounded_PV.t(), inputs_PD[rows])
    else:
        of_weight_VD += rounded_PV.t() @ inputs_PD[rows]
