"""Compare the pair encoder with d2l's dataset class (4 worker processes) on the same pairs.

    python benchmarks/pair_encoding.py MODEL SNLI        # a converted folder; Stanford's zip, or any source of finetune

The time is measured from texts to encoded pairs, without loading, as the median of alternating rounds. The memory is
the largest growth of all processes together (PSS, which counts shared memory once), measured in separate processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.support.d2l_reference

import psutil

MAX_LENGTH = 128
SIDES = ("d2l", "parse", "raw")


class Memory(threading.Thread):
    """Measures the memory of this process and its children."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes = self.peak = self.now()

    @staticmethod
    def now() -> int:
        this = psutil.Process()
        total = 0
        for process in (this, *this.children(recursive=True)):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:  # it has ended
                continue
        return total

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, self.now())
            time.sleep(0.05)


def measure(side: str, model: str, data: str, watch: bool) -> dict:
    """Encode all pairs twice with the method `side`, and measure both times."""
    from bert_snli.console import quiet_libraries
    from bert_snli.data.pair_encoding import PairEncoder, encode_pairs
    from bert_snli.data.snli import load_snli
    from bert_snli.inference import load_tokenizer
    from tests.support.d2l_reference import ReferencePairs

    quiet_libraries()
    tokenizer = load_tokenizer(model)
    splits = load_snli(data, text_source="raw" if side == "raw" else "parse").splits.values()
    if side == "d2l":
        vocabulary = tokenizer.get_vocab()
        columns = [[row for split in splits for row in split[name]] for name in ("premise", "hypothesis", "label")]

        def encode():
            return ReferencePairs(*columns, vocabulary, MAX_LENGTH)
    else:
        encoder = PairEncoder(tokenizer, MAX_LENGTH, text_source=side)

        def encode():
            return [encode_pairs(split, encoder) for split in splits]

    memory = Memory()
    if watch:
        memory.start()
    seconds = []
    for _ in range(1 if side == "d2l" else 2):
        begun = time.perf_counter()
        encode()
        seconds.append(time.perf_counter() - begun)
    return {"pairs": sum(map(len, splits)), "seconds": seconds, "bytes": memory.peak - memory.start_bytes}


def in_fresh_process(side: str, model: str, data: str, *flags: str) -> dict:
    with tempfile.TemporaryDirectory() as cache:  # the first run is a first run
        command = [sys.executable, __file__, model, data, "--side", side, *flags]
        done = subprocess.run(
            command,
            env={**os.environ, "HF_DATASETS_CACHE": cache},
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.model, args.data, args.watch)))
        return
    times: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    memory = {}
    for side in SIDES:
        result = in_fresh_process(side, args.model, args.data, "--watch")
        memory[side], pairs = result["bytes"], result["pairs"]
    for _ in range(args.rounds):
        for side in SIDES:
            times[side].append(in_fresh_process(side, args.model, args.data)["seconds"])
    first = {side: statistics.median(seconds[0] for seconds in times[side]) for side in SIDES}
    again = {side: statistics.median(seconds[-1] for seconds in times[side]) for side in SIDES}
    again["d2l"] = first["d2l"]  # it has no cache
    print(f"{pairs:,} pairs, max_length {MAX_LENGTH}, medians of {args.rounds}")
    print(f"{'':26}{'first run':>16}{'second run':>20}{'memory':>18}")
    for side, title in (("d2l", "d2l, 4 processes"), ("parse", "ours, parse tokens"), ("raw", "ours, raw text")):
        print(
            f"{title:26}{first[side]:7.2f} s {first['d2l'] / first[side]:5.1f} x"
            f"{again[side]:10.3f} s {first['d2l'] / again[side]:6.0f} x"
            f"{memory[side] / 1e6:9.0f} MB {memory[side] / memory['d2l']:5.2f}"
        )


if __name__ == "__main__":
    main()
