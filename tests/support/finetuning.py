"""Short fine-tuning runs in this process with the settings of d2l section 15.7, and what they leave."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from bert_snli.finetune import finetune_model
from bert_snli.training.arguments import FinetuneArguments
from tests.support.d2l_reference import encode_pair

STEPS, ROWS, BATCH, MAX_LENGTH = 30, 97, 32, 40  # 97 = 3 · 32 + 1: the last batch of an epoch is a single row
LABELS = {"entailment": 0, "contradiction": 1, "neutral": 2}
D2L_OPTIONS = {
    "text_source": "parse",
    "max_length": MAX_LENGTH,
    "max_train_samples": ROWS,
    "max_eval_samples": 30,
    "dropout": 0.0,
    "max_steps": STEPS,
    "train_batch_size": BATCH,
    "train_sampling_strategy": "random",
    "optim": "adam_torch",
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "loss_reduction": "sum",
    "logging_steps": 1,
    "mixed_precision": "no",
}
TIMES = ("train_seconds", "train_samples_per_second")  # metrics that differ between two equal runs


def read_parsed_rows(corpus: Path, split: str = "train") -> list[tuple[list[str], list[str], int]]:
    """Read SNLI as d2l does: the leaves of the binary parses of the labelled rows, lower-cased."""
    lines = (corpus / f"snli_1.0_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    sides = ("sentence1_binary_parse", "sentence2_binary_parse")

    def leaves(parse: str) -> list[str]:
        return re.sub(r"\s{2,}", " ", re.sub(r"[()]", "", parse)).strip().lower().split()

    labelled = [row for row in rows if row["gold_label"] in LABELS]
    return [(*(leaves(row[side]) for side in sides), LABELS[row["gold_label"]]) for row in labelled]


def encode_rows(corpus: Path, vocabulary: list[str]) -> tuple[torch.Tensor, ...]:
    """Return tokens, segments, valid lengths and labels of the first `ROWS` training rows, encoded as d2l does."""
    ids = {token: number for number, token in enumerate(vocabulary)}
    rows = read_parsed_rows(corpus)[:ROWS]
    encoded = [(*encode_pair(p, h, ids, MAX_LENGTH), label) for p, h, label in rows]
    return tuple(torch.tensor(column) for column in zip(*encoded, strict=True))


def run_finetune(base_model: Path, corpus: Path, output_dir: Path, **changes) -> np.ndarray:
    """Fine-tune in this process with `D2L_OPTIONS` and `changes`. Return the training loss of each log line."""
    options = {**D2L_OPTIONS, **changes}
    finetune_model(
        FinetuneArguments(
            model_name_or_path=str(base_model), dataset_name_or_path=str(corpus), output_dir=str(output_dir), **options
        )
    )
    return step_losses(output_dir)


def read_metrics(output_dir: Path) -> list[dict]:
    """Return the lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def read_metrics_without_times(output_dir: Path) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(output_dir)]


def step_losses(output_dir: Path) -> np.ndarray:
    """Return the training loss of each line of `metrics.jsonl` that is not an evaluation."""
    return np.array([entry["train_loss"] for entry in read_metrics(output_dir) if "learning_rate" in entry])


def find_differences(expected: Path, run: Path) -> list[str]:
    """Compare two finished runs bit by bit. Return the weights that differ, and "metrics.jsonl" if that differs."""
    weights, others = load_file(expected / "model.safetensors"), load_file(run / "model.safetensors")
    found = [
        name
        for name in weights.keys() | others.keys()
        if name not in weights or name not in others or not torch.equal(weights[name], others[name])
    ]
    same_metrics = read_metrics_without_times(expected) == read_metrics_without_times(run)
    return found if same_metrics else [*found, "metrics.jsonl"]
