"""Measure time and memory of `bert-snli finetune` by the number of pairs, for 1 and 2 processes.

    python benchmarks/scaling.py SNLI [--sizes 1000 10000 100000 550000] [--processes 1 2]

Each run is the whole command with the sizes of bert.small and 60,005 tokens, for one epoch in batches of 512. SNLI's
training pairs are repeated if a size needs more. The time includes encoding without a cache, evaluation and saving. The
memory is that of the largest process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
from tqdm.auto import tqdm

from benchmarks.common import machine, make_start, markdown, publish


def repeated(data: str, size: int, folder: Path) -> Path:
    """Write a folder of parquet files as on the Hub, with the given number of training pairs and 1,000 to evaluate."""
    from datasets import concatenate_datasets

    from bert_snli.data.snli import load_snli

    splits = load_snli(data, splits=["train", "validation"]).splits
    train = concatenate_datasets([splits["train"]] * -(-size // len(splits["train"]))).select(range(size))
    (folder / "plain_text").mkdir(parents=True)
    for name, rows in {"train": train, "validation": splits["validation"].select(range(1000))}.items():
        rows.to_parquet(folder / "plain_text" / f"{name}-00000-of-00001.parquet")
    return folder


def measure(model: Path, data: Path, output_dir: Path, processes: int) -> dict:
    """Measure one run of the command."""
    command = [sys.executable, "-m", "bert_snli.cli", "finetune", "--num_processes", str(processes)]
    options = {
        "model_name_or_path": model,
        "dataset_name_or_path": data,
        "output_dir": output_dir,
        "classifier_head": "pooler",
        "num_train_epochs": 1,
        "train_batch_size": 512,
        "mixed_precision": "no",
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    threads = max(1, (os.cpu_count() or 1) // processes)
    begun = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_DATASETS_CACHE": str(output_dir / "cache")}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    run = subprocess.Popen(command + words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while run.poll() is None:
            try:
                this = psutil.Process(run.pid)
                peak = max(peak, *(p.memory_info().rss for p in (this, *this.children(recursive=True))))
            except psutil.Error:  # it has ended
                continue
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output = run.communicate()[0].decode()
    watcher.join()
    if run.returncode:
        raise SystemExit(output[-2000:])
    results = json.loads((output_dir / "train_results.json").read_text())
    return {
        "seconds": time.perf_counter() - begun,
        "training_seconds": results["train_runtime"],
        "examples_per_second": results["train_samples_per_second"],
        "peak_bytes": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 550_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output_file", type=Path, default=Path("scaling_benchmark"))
    args = parser.parse_args()
    results, table = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_start(folder / "small", args.data, "small")
        for size in tqdm(args.sizes, disable=None):
            data = repeated(args.data, size, folder / f"data-{size}")
            for processes in args.processes:
                figures = measure(folder / "small", data, folder / f"run-{size}-{processes}", processes)
                results.append({"pairs": size, "processes": processes, **figures})
                table.append(
                    [
                        f"{size:,}",
                        str(processes),
                        f"{figures['seconds']:.0f}",
                        f"{figures['training_seconds']:.0f}",
                        f"{figures['examples_per_second']:,.0f}",
                        f"{figures['peak_bytes'] / 1e9:.2f}",
                    ]
                )
    header = ["pairs", "processes", "s, whole command", "s, training", "examples/s", "GB, largest process"]
    publish(
        args.output_file, "One epoch of bert.small", markdown(header, table), {"machine": machine(), "runs": results}
    )


if __name__ == "__main__":
    main()
