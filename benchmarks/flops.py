"""Count the floating-point operations of a training step, for the model FLOPs utilization in the table of `gpu.py`."""

from __future__ import annotations

from collections.abc import Iterable

from bert_snli.modeling import D2LBertConfig


def training_flops(config: D2LBertConfig, lengths: Iterable[int]) -> float:
    """Count the FLOPs of a classifier's matrix products in a forward and a backward pass over unpadded rows.

    These are the FLOPs of the whole model, including those that `bert_snli.fast` skips: two for each weight and token,
    and two for each product in the attention scores and values. The backward pass has twice as many.
    """
    hidden, inner, labels = config.hidden_size, config.classifier_hidden_size, config.num_labels
    head = {
        "pooler": hidden * (hidden + labels),
        "mlp": inner * (hidden + labels),
        "matching": hidden * (6 * hidden + labels),  # the means of the sentences are less than 0.1 % of the FLOPs
    }[config.classifier_head]
    return 3.0 * sum(encoder_flops(config, length) + 2 * head for length in lengths)


def encoder_flops(config: D2LBertConfig, length: int) -> float:
    """Return the FLOPs of the encoder in a forward pass over one row."""
    hidden = config.hidden_size
    weights = 4 * hidden**2 + 2 * hidden * config.intermediate_size
    return config.num_hidden_layers * (2.0 * weights * length + 4.0 * hidden * length**2)
