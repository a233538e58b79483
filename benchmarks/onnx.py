"""Compare PyTorch and ONNX Runtime in fp32 and int8: size, difference, accuracy, pairs/s and latency.

    python benchmarks/onnx.py MODEL SNLI [--split validation] [--settings]    # a fine-tuned folder; data of finetune

Prints the table of docs/guide/onnx.md and writes it as JSON. Pairs are encoded first, sorted by length and computed in
batches of 256. The latency is that of the logits of one pair. Backends take turns, so that other load affects all of
them; the table has medians. OMP_NUM_THREADS sets the threads of both libraries. `--settings` adds the table of
docs/experiments/onnx.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

# `import onnx` must find the library, and this file lies in a folder that Python would search first.
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import numpy as np
import onnxruntime
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from bert_snli.console import quiet_libraries
from bert_snli.data.batching import MicroBatch, PaddedPairs
from bert_snli.data.pair_encoding import encode_pairs, make_encoder
from bert_snli.data.snli import load_snli
from bert_snli.files import ONNX_FILE
from bert_snli.inference import (
    LogitsFunction,
    OnnxClassifier,
    TorchLogits,
    classifier_labels,
    load_classifier,
    load_tokenizer,
    predict_logits,
)
from bert_snli.onnx_export import export_onnx, to_onnx, write_int8

TORCH = "PyTorch fp32"
NUM_LATENCIES = 200
BATCH_SIZE = 256


class Backend(NamedTuple):
    """A backend, and the size of its weights on disk in bytes."""

    compute: LogitsFunction
    size: int


def backends_of(model: str, folder: Path, *, settings: bool) -> dict[str, Backend]:
    """Export the model into `folder`. Return the backends for PyTorch and for the exported files."""
    classifier = load_classifier(model)
    backends = {
        TORCH: Backend(
            TorchLogits(classifier, Accelerator(cpu=True)), (Path(model) / "model.safetensors").stat().st_size
        )
    }
    for quantize, name in ((None, "ONNX Runtime fp32"), ("int8", "ONNX Runtime int8")):
        exported = export_onnx(model, folder / name, quantize=quantize)
        backends[name] = Backend(OnnxClassifier(folder / name / ONNX_FILE, classifier.config), exported.size)
    for per_channel, reduce_range in ((True, False), (False, True), (False, False)) if settings else ():
        path = folder / f"int8, per_channel={per_channel}, reduce_range={reduce_range}"
        write_int8(to_onnx(load_classifier(model)), path, per_channel=per_channel, reduce_range=reduce_range)
        backends[path.name] = Backend(OnnxClassifier(path, classifier.config), path.stat().st_size)
    return backends


def measure(backends: dict[str, Backend], encoded, gold: np.ndarray, pad_token_id: int, rounds: int) -> dict[str, dict]:
    """Measure each backend. The first round is a warm-up, and gives the logits."""
    pairs = PaddedPairs(encoded, pad_token_id)
    pairs.labels = None
    singles = [
        pairs[MicroBatch([row], has_labels=True)]
        for row in np.linspace(0, len(pairs) - 1, NUM_LATENCIES, dtype=int).tolist()
    ]
    logits, seconds, latencies = {}, {name: [] for name in backends}, {name: [] for name in backends}
    for _ in tqdm(range(rounds + 1), desc="Rounds", disable=None):
        for name, backend in backends.items():
            begun = time.perf_counter()
            logits[name] = predict_logits(backend.compute, encoded, pad_token_id=pad_token_id, batch_size=BATCH_SIZE)
            seconds[name].append(time.perf_counter() - begun)
            for single in singles:
                begun = time.perf_counter()
                backend.compute(single)
                latencies[name].append(time.perf_counter() - begun)
    return {
        name: {
            "megabytes": backend.size / 1e6,
            "max_difference": float(np.abs(logits[name] - logits[TORCH]).max()),
            "same_label": float((logits[name].argmax(1) == logits[TORCH].argmax(1)).mean()),
            "accuracy": float((logits[name].argmax(1) == gold).mean()),
            "pairs_per_second": len(pairs) / statistics.median(seconds[name][1:]),
            "seconds": seconds[name][1:],
            "latency_ms": 1000 * statistics.median(latencies[name][NUM_LATENCIES:]),
        }
        for name, backend in backends.items()
    }


def machine() -> dict[str, Any]:
    """Return the properties of the machine that affect the results."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    return {
        "processor": facts.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": [name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if name in flags],
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def table(results: dict[str, dict]) -> str:
    """Format the results as a Markdown table."""
    lines = [
        "| | MB | max difference of a logit | same label | accuracy | pairs/s | one pair, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        difference = f"{row['max_difference']:.1e}" if name != TORCH else "-"
        lines.append(
            f"| {name} | {row['megabytes']:.1f} | {difference} | {row['same_label']:.2%} | {row['accuracy']:.4f} "
            f"| {row['pairs_per_second']:,.0f} | {row['latency_ms']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--rounds", type=int, default=3, help="rounds after a warm-up; the results are medians")
    parser.add_argument("--settings", action="store_true", help="measure also other int8 settings")
    parser.add_argument("--output_file", type=Path, default=Path("onnx_benchmark.json"))
    args = parser.parse_args()
    quiet_libraries()
    tokenizer = load_tokenizer(args.model)
    with tempfile.TemporaryDirectory() as folder:
        backends = backends_of(args.model, Path(folder), settings=args.settings)
        config = backends[TORCH].compute.config
        labels = classifier_labels(config, args.model)
        snli = load_snli(args.data, splits=[args.split], labels=labels).splits[args.split]
        encoded = encode_pairs(snli, make_encoder(config, tokenizer))
        results = measure(backends, encoded, np.array(snli["label"]), tokenizer.pad_token_id, args.rounds)
    report = {"split": args.split, "pairs": len(encoded), "machine": machine(), "results": results}
    args.output_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    facts = ", ".join(f"{name}: {value}" for name, value in report["machine"].items())
    print(f"{args.split}: {len(encoded):,} pairs; {facts}\n\n{table(results)}")


if __name__ == "__main__":
    main()
