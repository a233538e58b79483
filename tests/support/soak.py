"""Kill training runs at random moments, resume them, and compare the result with an uninterrupted run: `make soak`.

    python -m tests.support.soak [--kills 20] [--processes 1 2] [--seed 0]

Every other kill waits until a checkpoint is being written. All processes of a run get SIGKILL. It takes about five
minutes on two cores. `tests/integration/test_interruptions.py` does the same for about one minute.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from bert_snli.data.sample import write_sample
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer
from bert_snli.training.checkpointing import list_checkpoints
from tests.support.finetuning import find_differences
from tests.support.training_processes import TrainingRun, start_finetuning

# Dropout, batches grouped by length, two micro-batches, checkpoints in the middle of epochs and between two log lines.
OPTIONS = {
    "text_source": "raw",
    "max_length": 128,
    "dropout": 0.1,
    "max_train_samples": 3000,
    "max_eval_samples": 300,
    "max_steps": -1,
    "num_train_epochs": 4,
    "train_batch_size": 64,
    "train_sampling_strategy": "group_by_length",
    "num_micro_batches": 2,
    "optim": "adamw_torch_fused",
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "loss_reduction": "mean",
    "logging_steps": 7,
    "save_steps": 5,
}


class Kill(NamedTuple):
    """A kill: whether a checkpoint was being written, and the steps of the newest checkpoints before and after."""

    num_processes: int
    in_write: bool
    resumed_from: int
    newest_checkpoint: int


def make_inputs(folder: Path, num_rows: int = 3300) -> tuple[Path, Path]:
    """Write a generated corpus with `num_rows` training rows, and a small pretrained model with random weights.

    Returns their folders.
    """
    corpus = write_sample(folder / "corpus", num_pairs={"train": num_rows, "dev": 330, "test": 30})
    rows = [json.loads(line) for line in (corpus / "snli_1.0_train.jsonl").read_text().splitlines()]
    words = {word.lower() for row in rows for text in (row["sentence1"], row["sentence2"]) for word in text.split()}
    special = list(SPECIAL_TOKENS.values())
    tokenizer = build_tokenizer([*special, *sorted(words - set(special))], model_max_length=128)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    D2LBertForPreTraining(D2LBertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "base_model")
    tokenizer.save_pretrained(folder / "base_model")
    return corpus, folder / "base_model"


def newest_step(output_dir: Path) -> int:
    checkpoints = list_checkpoints(output_dir)
    return int(checkpoints[-1].name.split("-")[1]) if checkpoints else 0


def wait_for_training(run: TrainingRun, output_dir: Path, before: int) -> None:
    """Wait until the run has written `run.json`, whose time was `before`, or has ended."""
    while run.is_running() and time_of(output_dir) == before:
        time.sleep(0.005)


def time_of(output_dir: Path) -> int:
    """Return when `run.json` was written; 0 if there is none."""
    try:
        return (output_dir / "run.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def kill_once(
    run: TrainingRun, output_dir: Path, before: int, in_write: bool, longest_wait: float, chance: random.Random
) -> Kill | None:
    """Kill the run at a random moment, or while it writes a checkpoint. Return None if it had ended before."""
    resumed_from = newest_step(output_dir)
    wait_for_training(run, output_dir, before)
    moment = time.monotonic() + chance.uniform(0, longest_wait)
    while run.is_running() and time.monotonic() < moment:
        time.sleep(0.002)
    while in_write and run.is_running() and not list(output_dir.glob(".checkpoint-*.partial")):
        time.sleep(0.0005)
    if in_write:
        time.sleep(chance.uniform(0, 0.02))
    if not run.is_running():
        run.wait()
        return None
    run.kill()
    if (output_dir / "train_results.json").exists():
        return None
    unfinished = bool(list(output_dir.glob(".checkpoint-*.partial")))
    return Kill(len(run.processes), unfinished, resumed_from, newest_step(output_dir))


def soak(
    corpus: Path, base_model: Path, folder: Path, num_processes: int, kills: int, chance: random.Random, **changes
) -> list[Kill]:
    """Kill and resume runs `kills` times. Each run that ends must equal the uninterrupted run bit by bit.

    Args:
        folder: where the runs go.
        changes: options other than `OPTIONS`.

    Raises:
        AssertionError: weights or metrics differ.
    """
    options = {**OPTIONS, **changes}
    expected = folder / f"uninterrupted-{num_processes}"
    run = start_finetuning(base_model, corpus, expected, num_processes, **options)
    wait_for_training(run, expected, 0)
    begin = time.monotonic()
    run.wait()
    longest_wait = (time.monotonic() - begin) / 2  # most runs are killed more than once
    done: list[Kill] = []
    finished = 0
    while True:
        output_dir = folder / f"killed-{num_processes}-{finished}"
        before = time_of(output_dir)
        run = start_finetuning(base_model, corpus, output_dir, num_processes, **options)
        if len(done) == kills:
            run.wait()
        elif kill := kill_once(run, output_dir, before, len(done) % 2 == 1, longest_wait, chance):
            done.append(kill)
            print(
                f"| {len(done)} | {kill.num_processes} | {'yes' if kill.in_write else 'no'} | {kill.resumed_from} | "
                f"{kill.newest_checkpoint} |",
                flush=True,
            )
        if (output_dir / "train_results.json").exists():
            found = find_differences(expected, output_dir)
            assert not found, f"not bit-exact after kills, with {num_processes} process(es): {', '.join(found)}"
            finished += 1
            if len(done) == kills:
                return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="for each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        corpus, base_model = make_inputs(Path(name))
        print("| kill | processes | while writing a checkpoint | resumed from step | newest checkpoint |")
        print("|---|---|---|---|---|", flush=True)
        for num_processes in args.processes:
            kills = soak(corpus, base_model, Path(name), num_processes, args.kills, chance)
            print(
                f"\n{num_processes} process(es): {len(kills)} kills, {sum(kill.in_write for kill in kills)} of them "
                "while writing a checkpoint; all weights and metrics equal those of the uninterrupted run\n",
                flush=True,
            )
            if not any(kill.in_write for kill in kills):
                raise SystemExit("soak: no kill came while a checkpoint was written; try another --seed")


if __name__ == "__main__":
    main()
