"""How far two correct computations of one output may differ."""

from __future__ import annotations

import torch

from bert_snli.modeling import D2LBertConfig

# README promises this distance from d2l's own fp32 outputs, relative to the largest value. Rounding errors of either
# sign grow as eps * sqrt(n): a sum of bert.small's n = 256 terms has 1.9e-6.
D2L_TOLERANCE = 2e-6


def rounding(config: D2LBertConfig, dtype: torch.dtype = torch.float32) -> float:
    """Estimate how far two computations of a model's output may differ, relative to its largest value.

    Kernels sum in another order on each instruction set. Two orders of a sum of n terms differ by up to n * eps,
    relative to the terms (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2). Here n is the number
    of terms of the longest sum of a block, and the differences of the blocks add up.
    """
    longest_sum = max(config.hidden_size, config.intermediate_size)
    return config.num_hidden_layers * longest_sum * torch.finfo(dtype).eps
