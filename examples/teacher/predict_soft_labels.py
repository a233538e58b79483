"""Write a teacher's predictions for pairs, as soft labels for `bert-snli finetune --train_file`.

    python examples/teacher/predict_soft_labels.py teacher snli_1.0.zip pairs.jsonl taught.jsonl

The output holds the pairs with a gold label first. Their probabilities are the mean of the gold label and the teacher's
prediction, weighted by `--gold`. The script uses bf16 where it is faster; probabilities then have about two digits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification

from bert_snli.console import run
from bert_snli.data.pair_files import check_writable, iterate_pairs, open_output, write_predictions
from bert_snli.data.snli import load_snli
from bert_snli.errors import BertSnliError
from bert_snli.fast.machine import choose_precision
from bert_snli.files import read_history, write_history
from bert_snli.modeling.labels import D2L_LABELS
from encoders import open_encoder

ROWS_AT_ONCE, BATCH = 10_000, 100


def predict(model, tokenizer, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Return the probability of each of `D2L_LABELS`, shape (rows, 3). Batches hold pairs of similar length."""
    encoded = tokenizer(*zip(*pairs, strict=True), truncation=True, max_length=128)
    order = np.argsort([len(ids) for ids in encoded["input_ids"]])
    probabilities_R3 = np.empty((len(pairs), len(D2L_LABELS)))
    columns = [model.config.label2id[label] for label in D2L_LABELS]
    for rows in np.split(order, range(BATCH, len(order), BATCH)):
        batch = tokenizer.pad({name: [encoded[name][i] for i in rows] for name in encoded}, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**batch.to(model.device)).logits[:, columns]
        probabilities_R3[rows] = logits.double().softmax(dim=-1).cpu().numpy()
    return probabilities_R3


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="a transformers classifier with the labels of SNLI")
    parser.add_argument("dataset_name_or_path", help="a source of SNLI")
    parser.add_argument("pairs_file", type=Path, help=".jsonl of premise and hypothesis")
    parser.add_argument("output_file", type=Path)
    parser.add_argument("--gold", type=float, default=0.5, help="weight of the gold label (default: 0.5)")
    options = parser.parse_args(argv)
    check_writable(options.output_file)
    model, tokenizer = open_encoder(options.teacher, AutoModelForSequenceClassification)
    if lacking := sorted(set(D2L_LABELS) - set(model.config.label2id)):
        raise BertSnliError(f"{options.teacher}: has no label {lacking[0]}; give a classifier of SNLI's labels")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model.eval().to(device)
    if choose_precision("auto", device).name == "bf16":
        model.bfloat16()

    steps = read_history(Path(options.teacher))
    train = load_snli(options.dataset_name_or_path, splits=["train"]).splits["train"]
    pairs = [*zip(train["premise"], train["hypothesis"], strict=True), *iterate_pairs(options.pairs_file)]
    gold_R3 = np.eye(len(D2L_LABELS))[train["label"][:]]
    with open_output(options.output_file) as file, tqdm(total=len(pairs), unit="pair") as bar:
        for begin in range(0, len(pairs), ROWS_AT_ONCE):
            batch = pairs[begin : begin + ROWS_AT_ONCE]
            probabilities_R3 = predict(model, tokenizer, batch)
            known_R3 = gold_R3[begin : begin + len(batch)]  # pairs of the file have no gold label
            mixed = options.gold * known_R3 + (1 - options.gold) * probabilities_R3[: len(known_R3)]
            probabilities_R3[: len(known_R3)] = mixed
            write_predictions(file, [(batch, [_named(row) for row in probabilities_R3.tolist()])], "jsonl")
            bar.update(len(batch))
    step = (
        f"The teacher gave its probabilities for {len(pairs):,} pairs; those of the {len(gold_R3):,} with a label "
        f"were mixed with it ({options.gold:.0%} label)."
    )
    write_history(options.output_file, [*steps, step])


def _named(probabilities: list[float]) -> dict[str, float]:
    scores = zip(D2L_LABELS, probabilities, strict=True)
    return dict(sorted(scores, key=lambda item: -item[1]))


if __name__ == "__main__":
    sys.exit(run(Path(__file__).name, main))
