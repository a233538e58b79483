"""Optimizers and learning-rate schedules, by the names that `transformers` gives them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

# adam_torch is the book's (d2l 15.7.4): plain Adam, no weight decay.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw_torch_fused": partial(torch.optim.AdamW, fused=True),
    "adamw_torch": torch.optim.AdamW,
    "adam_torch": torch.optim.Adam,
}


def make_optimizer(model: nn.Module, name: str, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """The optimizer `name` over all that is trained; vectors (biases, LayerNorms) are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[name](groups, lr=learning_rate)


def make_scheduler(
    optimizer: torch.optim.Optimizer, name: str, warmup_steps: float, num_training_steps: int
) -> LRScheduler:
    """The schedule `name`; `warmup_steps` below 1 is a share of `num_training_steps`."""
    if warmup_steps < 1:
        warmup_steps = round(warmup_steps * num_training_steps)
    return get_scheduler(name, optimizer, num_warmup_steps=int(warmup_steps), num_training_steps=num_training_steps)
