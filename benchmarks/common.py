"""What the benchmarks of speed share: contenders in fresh processes that take turns, and their report."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
SIZES = {  # d2l 15.7.1; the vocabulary of the book's checkpoints
    "small": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
}
VOCABULARY = 60_005


def import_d2l():
    """The book's package, `pip install --no-deps d2l==1.0.3`, without what it imports and does not use here."""
    import types

    for name in ("torchvision", "torchvision.transforms", "gym"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    from d2l import torch as d2l

    return d2l


def make_start(folder: Path, data: str, size: str) -> None:
    """A pretrained model of the book's shape in `folder`: random weights, the words of `data` and fillers."""
    import random

    from bert_snli.data.snli import load_snli
    from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
    from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer

    pairs = load_snli(data, splits=["train"], text_source="parse").splits["train"]
    words = {word for name in ("premise", "hypothesis") for text in pairs[name] for word in text.lower().split()}
    special = [*SPECIAL_TOKENS.values()]
    ordinary = sorted(words - set(special))[: VOCABULARY - len(special)]
    ordinary += [f"filler{number}" for number in range(VOCABULARY - len(special) - len(ordinary))]
    random.Random(0).shuffle(ordinary)
    D2LBertForPreTraining(D2LBertConfig(vocab_size=VOCABULARY, **SIZES[size])).save_pretrained(folder)
    build_tokenizer(special + ordinary, model_max_length=512).save_pretrained(folder)


def in_turns(
    contenders: Sequence[str],
    rounds: int,
    arguments: Callable[[str], Sequence[str]],
    environment: dict[str, str] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """What `python ARGUMENTS` of each contender prints last, as JSON, in each round; each is a fresh process."""
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
    """Of one figure over the rounds."""
    return statistics.median(entry[figure] for entry in rounds)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch
    import transformers

    from bert_snli.fast.machine import matrix_rate

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
        "GFLOP/s in fp32": round(matrix_rate(device, torch.float32) / 1e9),
        "GFLOP/s in bf16": round(matrix_rate(device, torch.bfloat16) / 1e9, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def publish(path: Path, title: str, table: str, report: dict[str, Any]) -> None:
    """Print the machine and the table; write both as `path`.md, and everything as `path`.json."""
    facts = ", ".join(f"{name}: {value}" for name, value in report["machine"].items())
    text = f"{title}\n\n{table}\n\n{facts}\n"
    path.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
