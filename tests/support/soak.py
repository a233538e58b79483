"""Kill runs at random moments, pick them up, and compare the end with a run that was left alone: `make soak`.

    python -m tests.support.soak [--kills 20] [--processes 1 2] [--seed 0]

Every other kill waits until a checkpoint is being written. All processes of a run, the launcher too, get SIGKILL. Two
cores take some ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from safetensors.torch import load_file

from bert_snli.data.sample import write_sample
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer
from bert_snli.training.checkpointing import list_checkpoints

REPOSITORY = Path(__file__).resolve().parents[2]
TIMES = ("train_seconds", "train_samples_per_second")
# Dropout, bucketed batches, two passes, checkpoints in the middle of epochs and between the lines of metrics.
OPTIONS = {
    "dropout": 0.1,
    "max_train_samples": 3000,
    "max_eval_samples": 300,
    "num_train_epochs": 4,
    "train_batch_size": 64,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "logging_steps": 7,
    "save_steps": 5,
    "mixed_precision": "no",
}


class Kill(NamedTuple):
    """One kill: whether a checkpoint was being written, and the steps of the newest one before and after."""

    processes: int
    in_write: bool
    begun_at: int
    left_at: int


def make_inputs(folder: Path) -> tuple[Path, Path]:
    """A generated corpus, and a small pretrained model with random weights."""
    corpus = write_sample(folder / "corpus", num_pairs={"train": 3300, "dev": 330, "test": 30})
    rows = [json.loads(line) for line in (corpus / "snli_1.0_train.jsonl").read_text().splitlines()]
    words = {word.lower() for row in rows for text in (row["sentence1"], row["sentence2"]) for word in text.split()}
    special = list(SPECIAL_TOKENS.values())
    tokenizer = build_tokenizer([*special, *sorted(words - set(special))], model_max_length=128)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    D2LBertForPreTraining(D2LBertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    return corpus, folder / "start"


def begin(corpus: Path, start: Path, output_dir: Path, processes: int, **more: Any) -> subprocess.Popen:
    """The command of a run, on `processes` processes of one thread each."""
    options = {
        "model_name_or_path": start,
        "dataset_name_or_path": corpus,
        "output_dir": output_dir,
        "resume_from_checkpoint": "auto",
        **OPTIONS,
        **more,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "bert_snli.cli", "finetune", "--num_processes", str(processes), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(run: subprocess.Popen) -> None:
    """Wait for the end of a run, which must be a good one."""
    said, _ = run.communicate(timeout=600)
    if run.returncode != 0:
        raise SystemExit(f"soak: a run ended with {run.returncode}:\n{said}")


def kill_all(run: subprocess.Popen) -> None:
    """SIGKILL for the launcher and its processes, which are in sessions of their own."""
    family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    run.communicate()
    psutil.wait_procs(family)


def newest(output_dir: Path) -> int:
    checkpoints = list_checkpoints(output_dir)
    return int(checkpoints[-1].name.split("-")[1]) if checkpoints else 0


def kill_once(
    run: subprocess.Popen, output_dir: Path, processes: int, in_write: bool, chance: random.Random
) -> Kill | None:
    """Wait for a random moment and kill; nothing if the run had ended before."""
    begun_at, origin = newest(output_dir), output_dir / "run.json"
    before = origin.stat().st_mtime_ns if origin.exists() else 0
    while run.poll() is None and (not origin.exists() or origin.stat().st_mtime_ns == before):
        time.sleep(0.005)
    moment = time.monotonic() + chance.uniform(0, 2.0)
    while run.poll() is None and time.monotonic() < moment:
        time.sleep(0.002)
    while in_write and run.poll() is None and not list(output_dir.glob(".checkpoint-*.partial")):
        time.sleep(0.0005)
    if in_write:
        time.sleep(chance.uniform(0, 0.08))
    if run.poll() is not None:
        finish(run)
        return None
    kill_all(run)
    return Kill(processes, bool(list(output_dir.glob(".checkpoint-*.partial"))), begun_at, newest(output_dir))


def differences(whole: Path, other: Path) -> list[str]:
    """What of two finished runs is not the same to the bit: names of weights, lines of metrics."""
    ours, theirs = load_file(whole / "model.safetensors"), load_file(other / "model.safetensors")
    found = [
        name for name in ours.keys() | theirs.keys() if name not in theirs or not torch.equal(ours[name], theirs[name])
    ]
    lines = [
        [
            {name: value for name, value in json.loads(line).items() if name not in TIMES}
            for line in file.read_text().splitlines()
        ]
        for file in (whole / "metrics.jsonl", other / "metrics.jsonl")
    ]
    return found if lines[0] == lines[1] else [*found, "metrics.jsonl"]


def soak(folder: Path, processes: int, kills: int, chance: random.Random, **changes: Any) -> list[Kill]:
    """Kill and resume until there have been so many kills; whatever comes to its end must be what an unharmed run is.

    `changes` are of the options.

    Raises:
        SystemExit: it is not.
    """
    corpus, start = folder / "corpus", folder / "start"
    whole = folder / f"whole-{processes}"
    finish(begin(corpus, start, whole, processes, **changes))
    done: list[Kill] = []
    victim = folder / f"victim-{processes}-0"
    ended = 0
    while len(done) < kills or not (victim / "train_results.json").exists():
        if (victim / "train_results.json").exists():
            ended += 1
            victim = folder / f"victim-{processes}-{ended}"
        run = begin(corpus, start, victim, processes, **changes)
        if len(done) == kills:
            finish(run)
        elif kill := kill_once(run, victim, processes, len(done) % 2 == 1, chance):
            done.append(kill)
            print(
                f"| {len(done)} | {kill.processes} | {'yes' if kill.in_write else 'no'} | {kill.begun_at} | "
                f"{kill.left_at} |",
                flush=True,
            )
        if (victim / "train_results.json").exists() and (found := differences(whole, victim)):
            raise SystemExit(f"soak: not the same after kills, with {processes} process(es): {', '.join(found)}")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="for each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        print("| kill | processes | while writing a checkpoint | resumed from step | newest checkpoint then |")
        print("|---|---|---|---|---|", flush=True)
        for processes in args.processes:
            kills = soak(folder, processes, args.kills, chance)
            print(
                f"\n{processes} process(es): {len(kills)} kills, {sum(kill.in_write for kill in kills)} of them while "
                "writing a checkpoint; every weight and every line of metrics is what the unharmed run has\n",
                flush=True,
            )
            if not any(kill.in_write for kill in kills):
                raise SystemExit("soak: no kill fell into the writing of a checkpoint; try another --seed")


if __name__ == "__main__":
    main()
