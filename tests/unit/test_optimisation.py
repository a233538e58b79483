"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math

import pytest
import torch

from bert_snli.training.setup import make_optimizer, make_scheduler


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "adam_torch"])
def test_weight_decay_is_for_matrices_only(optim: str):
    optimizer = make_optimizer(torch.nn.Linear(3, 3), optim, learning_rate=1.0, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert [group["params"][0].dim() for group in optimizer.param_groups] == [2, 1]


@pytest.mark.parametrize(
    ("schedule", "warmup", "decay"),
    [
        ("linear", True, lambda progress: 1 - progress),
        ("cosine", True, lambda progress: (1 + math.cos(math.pi * progress)) / 2),
        ("constant", False, lambda progress: 1.0),
        ("constant_with_warmup", True, lambda progress: 1.0),
    ],
    ids=["linear", "cosine", "constant", "constant_with_warmup"],
)
def test_learning_rate_of_each_update(schedule: str, warmup: bool, decay):
    optimizer = make_optimizer(torch.nn.Linear(3, 3), "adamw_torch", learning_rate=2.0, weight_decay=0.5)
    scheduler = make_scheduler(optimizer, schedule, warmup_steps=0.2, num_training_steps=10)
    rates = []
    for _ in range(11):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    start = [0.0, 1.0] if warmup else [2.0, 2.0]
    assert rates == pytest.approx([*start, *(2 * decay(step / 8) for step in range(9))])
