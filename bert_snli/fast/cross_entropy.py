"""The cross-entropy of a linear layer over a large vocabulary, in chunks of rows: all logits never exist together.

`nn.functional.linear_cross_entropy` of PyTorch 2.13 takes two to four times as long on a CPU at our sizes, and it does
not count correct predictions. Chunks with `torch.utils.checkpoint` make a step of pretraining 20 % slower.

Shape suffixes: P rows (positions to predict), D hidden size, V vocabulary.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

IGNORED_LABEL = -100
CHUNK_SIZE_CPU, CHUNK_SIZE_GPU = 512, 4096  # rows; the caches of a CPU hold about 512 rows of logits


def linear_cross_entropy(
    hidden_PD: torch.Tensor, linear: nn.Linear, labels_P: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the sum of the cross-entropies of `linear(hidden_PD)` and the number of correct predictions.

    Rows with the label −100 are ignored. A prediction is correct if no logit is larger than that of the label. Matrix
    products have the dtype of autocast, if it is enabled.
    """
    device, dtype = hidden_PD.device.type, hidden_PD.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return LinearCrossEntropy.apply(hidden_PD, linear.weight, linear.bias, labels_P, dtype, torch.is_grad_enabled())


class LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, while the logits of a chunk exist.

    With hidden states h, logits z = h Wᵀ + b, probabilities p = softmax(z) and the one-hot labels y, the gradient of z
    is g = p − y. So the gradients of h, W and b are g W, gᵀ h and the column sums of g.
    """

    @staticmethod
    def forward(ctx, hidden_PD, weight_VD, bias_V, labels_P, dtype: torch.dtype, with_gradients: bool):
        loss, num_correct = bias_V.new_zeros(()), labels_P.new_zeros(())
        gradients = [torch.zeros_like(x) for x in (hidden_PD, weight_VD, bias_V)] if with_gradients else []
        # Loss scaling comes later, so fp16 would round gradients below 3e-8 to 0.
        gradient_dtype = torch.float32 if dtype == torch.float16 else dtype
        cast_weight_VD, cast_bias_V, factor_VD = weight_VD.to(dtype), bias_V.to(dtype), weight_VD.to(gradient_dtype)
        chunk_size = CHUNK_SIZE_CPU if hidden_PD.device.type == "cpu" else CHUNK_SIZE_GPU
        for begin in range(0, len(labels_P), chunk_size):
            rows = slice(begin, begin + chunk_size)
            logits_PV = nn.functional.linear(hidden_PD[rows].to(dtype), cast_weight_VD, cast_bias_V)
            chunk_loss, chunk_correct, gradient_PV = _cross_entropy(logits_PV.to(bias_V.dtype), labels_P[rows])
            loss += chunk_loss
            num_correct += chunk_correct
            if with_gradients:
                grad_hidden_PD, grad_weight_VD, grad_bias_V = gradients
                grad_bias_V += gradient_PV.sum(dim=0)
                gradient_PV = gradient_PV.to(gradient_dtype)
                grad_hidden_PD[rows] = gradient_PV @ factor_VD
                grad_weight_VD += gradient_PV.t() @ hidden_PD[rows].to(gradient_dtype)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(num_correct)
        return loss, num_correct

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, _):
        return (*(gradient * grad_loss for gradient in ctx.saved_tensors), None, None, None)


def _cross_entropy(logits_PV: torch.Tensor, labels_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the sum of the losses, the number of correct predictions and the gradient of the logits."""
    targets_P1, is_labeled_P1 = labels_P[:, None].clamp(min=0), labels_P[:, None] != IGNORED_LABEL
    probabilities_PV = logits_PV.softmax(dim=-1)
    target_logits_P1, largest_P1 = logits_PV.gather(1, targets_P1), logits_PV.amax(dim=-1, keepdim=True)
    num_correct = ((target_logits_P1 == largest_P1) & is_labeled_P1).sum()
    # The label's probability may be rounded to 0. The largest one is not, so the loss uses its logarithm.
    losses_P1 = largest_P1 - target_logits_P1 - probabilities_PV.amax(dim=-1, keepdim=True).log()
    weights_P1 = is_labeled_P1.to(logits_PV.dtype)  # a product with booleans takes four times as long
    gradient_PV = probabilities_PV.mul_(weights_P1).scatter_add_(1, targets_P1, -weights_P1)
    return (losses_P1 * weights_P1).sum(), num_correct, gradient_PV
