"""Short fine-tuning runs with the settings of d2l section 15.7, and their metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch

from bert_snli.finetune import finetune
from bert_snli.training.recipe import FinetuneRecipe
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


def read_parsed_rows(corpus: Path, split: str = "train") -> list[tuple[list[str], list[str], int]]:
    """SNLI as the book reads it: leaves of the binary parses of the labelled rows, lower-cased."""
    lines = (corpus / f"snli_1.0_{split}.txt").read_text(encoding="utf-8").splitlines()[1:]
    cells = [line.split("\t") for line in lines]

    def leaves(parse: str) -> list[str]:
        return re.sub(r"\s{2,}", " ", re.sub(r"[()]", "", parse)).strip().lower().split()

    return [(leaves(cell[1]), leaves(cell[2]), LABELS[cell[0]]) for cell in cells if cell[0] in LABELS]


def encode_rows(corpus: Path, vocabulary: list[str]) -> tuple[torch.Tensor, ...]:
    """Tokens, segments, valid lengths and labels of the training rows, encoded by the book's rules."""
    ids = {token: number for number, token in enumerate(vocabulary)}
    rows = read_parsed_rows(corpus)[:ROWS]
    encoded = [(*encode_pair(p, h, ids, MAX_LENGTH), label) for p, h, label in rows]
    return tuple(torch.tensor(column) for column in zip(*encoded, strict=True))


def run_finetune(start: Path, corpus: Path, output_dir: Path, **changes) -> np.ndarray:
    """Fine-tune in this process; returns the loss of each step."""
    options = {**D2L_OPTIONS, **changes}
    finetune(
        FinetuneRecipe(
            model_name_or_path=str(start), dataset_name_or_path=str(corpus), output_dir=str(output_dir), **options
        )
    )
    return step_losses(output_dir)


def metrics(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def step_losses(output_dir: Path) -> np.ndarray:
    return np.array([entry["train_loss"] for entry in metrics(output_dir) if "learning_rate" in entry])
