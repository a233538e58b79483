"""Properties of the machine: matmul throughput, the precision for training, and memory allocation."""

import ctypes
import os
import sys
import time
from typing import NamedTuple

import torch
from accelerate.state import AcceleratorState, is_initialized

from bert_snli.errors import BertSnliError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MIN_SPEEDUP_OF_BF16 = 1.5  # casts cost more than a smaller speedup saves
MEASUREMENT_SECONDS = 0.1
# rows, inner size and columns; on a CPU, those of the feed-forward network of bert.small on a few rows
CPU_MATMUL, GPU_MATMUL = (1024, 256, 512), (8192, 8192, 8192)


class Precision(NamedTuple):
    """The precision of training: Accelerate's name, the matmul throughput in it (FLOP/s), and why it was chosen."""

    name: str
    matmul_throughput: float
    reason: str


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next tensors. Does nothing with other C libraries.

    By default glibc returns large blocks to the operating system, which fills each new block with zeros, page by page.
    For the activations of these models, this takes longer than the computation.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_MAX, 0)


def measure_matmul_throughput(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the throughput of a matrix product in FLOP/s: the best of at least three measurements.

    The best is used, because other work on the machine can only slow a product down. The factors are random. With
    constant factors a GPU needs less power and runs at a higher clock rate.
    """
    rows, inner, columns = CPU_MATMUL if device.type == "cpu" else GPU_MATMUL
    generator = torch.Generator(device).manual_seed(0)  # leaves the random state of the run unchanged
    left, right = (
        torch.randn(size, generator=generator, device=device, dtype=dtype) for size in ((rows, inner), (inner, columns))
    )
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < MEASUREMENT_SECONDS:
        start = time.perf_counter()
        left @ right
        if device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * rows * inner * columns / min(seconds)


def choose_precision(requested: str, device: torch.device) -> Precision:
    """Return the requested precision (`no`, `bf16` or `fp16`), or choose it for `device` if `auto` is requested.

    `auto` uses Accelerate's setting: that of an `Accelerator` of this process, or that of `accelerate launch`. If that
    is `no`, bf16 is chosen where it is at least 1.5 times as fast as fp32.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in PRECISIONS:
        raise BertSnliError(f"ACCELERATE_MIXED_PRECISION {launched}: is unknown; choose from {', '.join(PRECISIONS)}")
    if is_initialized():  # Accelerate has one precision in a process
        current = str(AcceleratorState().mixed_precision)
        if requested not in ("auto", current):
            what = f"this process already has an Accelerator with {current}"
            raise BertSnliError(f"mixed_precision {requested}: {what}; use {current}, or start another process")
        requested = current
    elif requested == "auto" and launched != "no":
        requested = launched
    if requested != "auto":
        return Precision(requested, measure_matmul_throughput(device, PRECISIONS[requested]), "as requested")
    fp32, bf16 = (measure_matmul_throughput(device, PRECISIONS[name]) for name in ("no", "bf16"))
    reason = f"bf16 multiplies {bf16 / fp32:.2g} times as fast as fp32"
    if bf16 > MIN_SPEEDUP_OF_BF16 * fp32:
        return Precision("bf16", bf16, reason)
    return Precision("no", fp32, reason)
