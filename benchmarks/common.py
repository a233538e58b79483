"""Run contenders of a speed benchmark in new processes, one after the other, and report the results."""

from __future__ import annotations

import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
SIZES = {  # d2l 15.7.1; the vocabulary of the book's checkpoints
    "small": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "tiny": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},  # for tests
}
VOCABULARY = 60_005
UPDATES_AHEAD = 10  # that a GPU may have waiting
# What d2l.torch 1.0.3 imports and the benchmarks do not use.
UNUSED_BY_BENCHMARKS = (
    "torchvision",
    "PIL",
    "pandas",
    "requests",
    "IPython",
    "matplotlib",
    "matplotlib_inline",
    "scipy",
    "scipy.spatial",
)


def import_d2l():
    """Import d2l's package, `pip install --no-deps d2l==1.0.3`.

    A module of `UNUSED_BY_BENCHMARKS` that is not installed is replaced by an empty module during the import.

    Raises:
        ModuleNotFoundError: d2l is not installed.
    """
    stand_ins = []
    for name in UNUSED_BY_BENCHMARKS:
        try:
            importlib.import_module(name)
        except ImportError:
            stand_in = types.ModuleType(name)
            stand_in.__getattr__ = lambda attribute: None  # so that `from PIL import Image` works
            sys.modules[name] = stand_in
            stand_ins.append(name)
    try:
        from d2l import torch as d2l
    finally:
        for name in stand_ins:  # other libraries look for these modules to learn what is installed
            del sys.modules[name]
    return d2l


def endless(batches: Iterable) -> Iterator:
    """Iterate over `batches` again and again."""
    while True:
        yield from batches


def measure(step: Callable[[], int], seconds: float, warm_up: int) -> dict[str, float]:
    """Call `step`, which returns a number of examples, for at least `seconds`, after `warm_up` calls.

    Returns:
        `examples`, `seconds` and `examples_per_second`. On a GPU the time ends when all work is done.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    for _ in range(warm_up):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    waiting: deque[torch.cuda.Event] = deque()
    examples, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        examples += step()
        if on_gpu:  # waiting for each call would slow it down; without a limit the host could be seconds ahead
            waiting.append(torch.cuda.Event())
            waiting[-1].record()
            if len(waiting) > UPDATES_AHEAD:
                waiting.popleft().synchronize()
    if on_gpu:
        torch.cuda.synchronize()
    took = time.perf_counter() - begun
    return {"examples": examples, "seconds": took, "examples_per_second": examples / took}


def make_start(folder: Path, data: str, size: str, vocabulary: int = VOCABULARY) -> None:
    """Write a pretrained model with d2l's sizes to `folder`: random weights, the tokens of `data` and filler tokens."""
    import random

    from bert_snli.data.snli import load_snli
    from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
    from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer

    pairs = load_snli(data, splits=["train"], text_source="parse").splits["train"]
    words = {word for name in ("premise", "hypothesis") for text in pairs[name] for word in text.lower().split()}
    special = [*SPECIAL_TOKENS.values()]
    ordinary = sorted(words - set(special))[: vocabulary - len(special)]
    ordinary += [f"filler{number}" for number in range(vocabulary - len(special) - len(ordinary))]
    random.Random(0).shuffle(ordinary)
    D2LBertForPreTraining(D2LBertConfig(vocab_size=vocabulary, **SIZES[size])).save_pretrained(folder)
    build_tokenizer(special + ordinary, model_max_length=512).save_pretrained(folder)


def in_turns(
    contenders: Sequence[str],
    rounds: int,
    arguments: Callable[[str], Sequence[str]],
    environment: dict[str, str] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Run `python ARGUMENTS` of each contender in each round. Return the JSON values that the processes print last."""
    from tqdm.auto import tqdm

    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in tqdm(contenders, desc=f"Round {number + 1} of {rounds}", disable=None):
            finished = subprocess.run([sys.executable, *arguments(name)], capture_output=True, text=True)
            if finished.returncode:
                raise SystemExit(f"{name}: {finished.stderr.strip()[-2000:]}")
            results[name].append(json.loads(finished.stdout.splitlines()[-1]))
    return results


def median(rounds: Sequence[dict[str, Any]], figure: str) -> float:
    """Return the median of one measurement over the rounds."""
    return statistics.median(entry[figure] for entry in rounds)


def machine() -> dict[str, Any]:
    """Return the properties of the machine that affect the results."""
    import torch
    import transformers

    from bert_snli.fast.machine import measure_matmul_throughput

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    family = f", family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else ""
    return {
        "processor": facts.get("model name", platform.processor()) + family,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": [name for name in FLAGS if name in facts.get("flags", "").split()],
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "GFLOP/s in fp32": round(measure_matmul_throughput(device, torch.float32) / 1e9),
        "GFLOP/s in bf16": round(measure_matmul_throughput(device, torch.bfloat16) / 1e9, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def publish(path: Path, title: str, table: str, report: dict[str, Any]) -> None:
    """Print the machine and the table. Write both to `path`.md, and all values to `path`.json."""
    facts = ", ".join(f"{name}: {value}" for name, value in report["machine"].items())
    text = f"{title}\n\n{table}\n\n{facts}\n"
    path.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
