"""Measure the time of a step and of its gradient exchange, and predict the speed with more processes.

    python benchmarks/processes.py MODEL SNLI [--steps 40]

Each process has one thread. A step of B pairs on n processes takes compute * B / n + update + exchange(n). The first
two are fitted to steps of several sizes on one process; the third is measured between two, and is 2 (n - 1) / n times
the bytes of the gradient over the bandwidth. The prediction for two processes is next to their measurement; for
other networks, their bandwidth is used. The prediction ignores that the exchange can overlap the backward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors import safe_open
from scipy.optimize import nnls
from tqdm.auto import tqdm

from benchmarks.common import machine, markdown, publish

LINKS = {"1 Gbit/s": 1e9 / 8, "10 Gbit/s": 1e10 / 8, "100 Gbit/s": 1e11 / 8}  # bytes per second
NUMBERS = (2, 4, 8, 16, 64)
SIZES = (16, 64, 256, 1024)


def step_seconds(model: str, data: str, folder: Path, batch: int, processes: int, steps: int) -> float:
    """Return the median seconds of a step of `batch` pairs, from all lines of metrics except the first."""
    output_dir = folder / f"{batch}-{processes}"
    options = {
        "model_name_or_path": model,
        "dataset_name_or_path": data,
        "output_dir": output_dir,
        "classifier_head": "pooler",
        "train_batch_size": batch,
        "max_steps": steps,
        "logging_steps": max(1, steps // 10),
        "max_eval_samples": 100,
        "mixed_precision": "no",
        "train_sampling_strategy": "random",  # so that steps are alike
        "save_steps": steps,
        "save_total_limit": 1,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    subprocess.run(
        [sys.executable, "-m", "bert_snli.cli", "finetune", "--num_processes", str(processes), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        check=True,
        capture_output=True,
    )
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    rates = [line["train_samples_per_second"] for line in lines if "learning_rate" in line][1:]
    return batch / statistics.median(rates)


def gradient_bytes(checkpoint: Path) -> int:
    """Return the size of the gradient in bytes. A checkpoint holds only the trained weights, so its size is used."""
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it is no mapping
    rows = [name for name in shapes if name.startswith("embedding_rows.")]
    trained = [name for name in shapes if not rows or not name.endswith("word_embeddings.weight")]
    return 4 * sum(torch.Size(shapes[name]).numel() for name in trained)


def exchange(rank: int, size: int, port: int, rounds: int, path: str) -> None:
    """Run one of two processes that sum `size` bytes over gloo, and write the median seconds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    gradient, seconds = torch.ones(size // 4), []
    for _ in range(rounds):
        dist.barrier()
        begun = time.perf_counter()
        dist.all_reduce(gradient)
        seconds.append(time.perf_counter() - begun)
    if rank == 0:
        Path(path).write_text(str(statistics.median(seconds)))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output_file", type=Path, default=Path("processes_benchmark"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [(batch, processes) for batch in SIZES for processes in (1, 2)]
        seconds = {
            run: step_seconds(args.model, args.data, folder, *run, args.steps) for run in tqdm(runs, disable=None)
        }
        size = gradient_bytes(next((folder / f"{SIZES[0]}-1").glob("checkpoint-*")))
        port, timing = 29_000 + os.getpid() % 1000, folder / "exchange"
        torch.multiprocessing.spawn(exchange, (size, port, 20, str(timing)), nprocs=2)
        between_two = float(timing.read_text())
    alone = np.array([seconds[batch, 1] for batch in SIZES])
    # Neither is below zero; relative errors count, so that the small steps are not lost.
    (compute, update), _ = nnls(np.stack([SIZES, np.ones(len(SIZES))], axis=1) / alone[:, None], np.ones(len(SIZES)))

    def predicted(batch: int, processes: int, bandwidth: float) -> float:
        return compute * batch / processes + update + 2 * (processes - 1) / processes * size / bandwidth

    measured = [
        [
            f"{batch:,}",
            f"{seconds[batch, 1] * 1e3:.0f}",
            f"{seconds[batch, 2] * 1e3:.0f}",
            f"{predicted(batch, 2, size / between_two) * 1e3:.0f}",
            f"{seconds[batch, 1] / seconds[batch, 2]:.2f}",
        ]
        for batch in SIZES
    ]
    drawn = [
        [link, f"{batch:,}"]
        + [f"{predicted(batch, 1, bandwidth) / predicted(batch, number, bandwidth):.1f}" for number in NUMBERS]
        for link, bandwidth in LINKS.items()
        for batch in (256, 4096)
    ]
    text = "\n\n".join(
        [
            f"{compute * 1e3:.2f} ms a pair, {update * 1e3:.0f} ms an update, {size / 1e6:.1f} MB of gradient, "
            f"{between_two * 1e3:.0f} ms to sum it up between two processes here",
            markdown(["pairs a step", "1 process, ms", "2 processes, ms", "predicted, ms", "times as fast"], measured),
            "Times as fast as one process, as predicted:",
            markdown(["link", "pairs a step", *(f"{number} processes" for number in NUMBERS)], drawn),
        ]
    )
    publish(
        args.output_file,
        "Fine-tuning on more processes",
        text,
        {
            "machine": machine(),
            "seconds": {f"{batch} on {processes}": value for (batch, processes), value in seconds.items()},
            "gradient_bytes": size,
            "exchange_seconds": between_two,
        },
    )


if __name__ == "__main__":
    main()
