"""What the machine can do: its rate of matrix products, the precision that suits it, and how it keeps memory."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from accelerate.state import AcceleratorState, is_initialized

from bert_snli.errors import BertSnliError
from bert_snli.modeling import D2LBertConfig

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WORTH_IT = 1.5  # times as fast as fp32: less would go into casting
MEASUREMENT_PATTERNS = 0.1  # seconds: some turns of a processor that others have a share of
PRODUCT = (1024, 256, 512)  # of the size that bert.small's feed-forward network takes on a few rows


class Precision(NamedTuple):
    """`name` as Accelerate has it, its `rate` of matrix products in FLOP/s, and `reason` for the log."""

    name: str
    rate: float
    reason: str


def keep_freed_memory() -> None:
    """Have the process keep the memory that tensors free, for the next ones; nothing where the C library is not glibc.

    It gives large blocks back to the system at once, which then fills each new one with zeros, page by page: at the
    size of our activations that takes longer than the sums they hold.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_MAX, 0)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of a matrix product on `device`: the best of at least three in `MEASUREMENT_PATTERNS` seconds.

    Other work on the machine can only slow a product down. The factors are random numbers: products of ones cost less
    power on a GPU, which then runs at a higher clock rate.
    """
    rows, inner, columns = PRODUCT if device.type == "cpu" else (8192, 8192, 8192)
    generator = torch.Generator(device).manual_seed(0)  # a separate one, so that the seed of the run does not change
    left, right = (
        torch.randn(size, generator=generator, device=device, dtype=dtype) for size in ((rows, inner), (inner, columns))
    )
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < MEASUREMENT_PATTERNS:
        begun = time.perf_counter()
        left @ right
        if device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - begun)
    return 2 * rows * inner * columns / min(seconds)


def choose_precision(requested: str, device: torch.device) -> Precision:
    """Choose the precision of training.

    Args:
        requested: `no`, `bf16`, `fp16` or `auto`. `auto` uses Accelerate's setting: that of an `Accelerator` of this
            process, or that of `accelerate launch`. If that is `no`, bf16 is chosen where it is faster than fp32.
        device: where the model is trained.

    Returns:
        The precision, the matmul throughput in it, and the reason for the choice.

    Raises:
        BertSnliError: Accelerate's setting is a precision that is not supported.
    """
    if requested == "auto":
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if launched not in PRECISIONS:
            raise BertSnliError(f"accelerate launch --mixed_precision {launched}: choose from {', '.join(PRECISIONS)}")
        if is_initialized():
            requested = str(AcceleratorState().mixed_precision)
        elif launched != "no":
            requested = launched
    if requested != "auto":
        return Precision(requested, matrix_rate(device, PRECISIONS[requested]), "as requested")
    plain, half = (matrix_rate(device, PRECISIONS[name]) for name in ("no", "bf16"))
    reason = f"bf16 multiplies {half / plain:.2g} times as fast as fp32"
    return Precision("bf16", half, reason) if half > WORTH_IT * plain else Precision("no", plain, reason)


def training_flops(config: D2LBertConfig, lengths: Iterable[int]) -> float:
    """FLOPs of a classifier's matrix products in one pass forward and back over rows of `lengths` tokens, none padded.

    The whole model's, whatever a faster path leaves out of them: two a weight and token, two a number of each score
    and mixed value, and twice as many on the way back.
    """
    hidden, inner, labels = config.hidden_size, config.classifier_hidden_size, config.num_labels
    head = {
        "pooler": hidden * (hidden + labels),
        "mlp": inner * (hidden + labels),
        "matching": hidden * (6 * hidden + labels),  # and its means, less than a thousandth of it all
    }[config.classifier_head]
    return 3.0 * sum(_encoder_flops(config, length) + 2 * head for length in lengths)


def pretraining_flops(config: D2LBertConfig, lengths: Iterable[int], predictions: Iterable[int]) -> float:
    """The same for pretraining, with as many `predictions` of words in each row."""
    hidden = config.hidden_size
    word, sentence = hidden * (hidden + config.vocab_size), hidden * (hidden + 2)
    return 3.0 * sum(
        _encoder_flops(config, length) + 2 * (sentence + word * predicted)
        for length, predicted in zip(lengths, predictions, strict=True)
    )


def _encoder_flops(config: D2LBertConfig, length: int) -> float:
    hidden = config.hidden_size
    weights = 4 * hidden**2 + 2 * hidden * config.intermediate_size
    return config.num_hidden_layers * (2.0 * weights * length + 4.0 * hidden * length**2)
