"""Compare two ways to truncate long pairs on a split of SNLI (an exercise of d2l 15.7).

    python benchmarks/truncation.py MODEL SNLI [--split validation]        # a fine-tuned folder; any source of finetune

Prints the table of docs/experiments/truncation.md and draws its figure. The model is the same for all lengths. Only
the truncation of its input changes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from bert_snli.console import quiet_libraries
from bert_snli.data.pair_encoding import NUM_SPECIAL_TOKENS, encode_pairs, make_encoder
from bert_snli.data.snli import load_snli
from bert_snli.inference import classifier_labels, load_classifier, load_tokenizer, predict_logits
from bert_snli.modeling.pair_truncation import truncated_lengths

WAYS = ("longest", "ratio")
LENGTHS = (16, 24, 32, 48, 128)


def side_lengths(encoded) -> np.ndarray:
    """Return the lengths of premises and hypotheses in tokens, without special tokens: (2, pairs)."""
    hypothesis = np.array([sum(segments) - 1 for segments in encoded["token_type_ids"]])
    return np.stack([np.array(encoded["length"]) - NUM_SPECIAL_TOKENS - hypothesis, hypothesis])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--figure", type=Path, default=Path("docs/truncation.png"))
    args = parser.parse_args()
    quiet_libraries()
    model, tokenizer = load_classifier(args.model), load_tokenizer(args.model)
    labels = classifier_labels(model.config, args.model)
    pairs = load_snli(args.data, splits=[args.split], labels=labels).splits[args.split]
    gold = np.array(pairs["label"])
    whole = side_lengths(
        encode_pairs(pairs, make_encoder(model.config, tokenizer, max_length=tokenizer.model_max_length))
    )
    accuracy: dict[str, list[float]] = {way: [] for way in WAYS}
    print(f"{args.split}: {len(pairs):,} pairs, {whole[0].mean():.1f} + {whole[1].mean():.1f} tokens on average\n")
    print("| max_length | pairs cut | way | premise lost | hypothesis lost | accuracy | accuracy on the cut pairs |")
    print("|---|---|---|---|---|---|---|")
    for length in LENGTHS:
        budget = length - NUM_SPECIAL_TOKENS
        cut = whole.sum(0) > budget
        for way in WAYS:
            line = f"| {length} | {cut.mean():.1%} | {way} |"
            kept = np.stack(truncated_lengths(*whole, budget, way))
            encoded = encode_pairs(pairs, make_encoder(model.config, tokenizer, max_length=length, truncation=way))
            right = predict_logits(model, encoded, pad_token_id=tokenizer.pad_token_id).argmax(-1) == gold
            accuracy[way].append(right.mean())
            lost = 1 - kept.sum(1) / whole.sum(1)
            on_cut = f"{right[cut].mean():.4f}" if cut.any() else "-"
            print(f"{line} {lost[0]:.1%} | {lost[1]:.1%} | {right.mean():.4f} | {on_cut} |", flush=True)
    draw(accuracy, args.figure)


def draw(accuracy: dict[str, list[float]], path: Path) -> None:
    """Plot the accuracy over the maximum length, with one line for each truncation."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for (way, values), marker in zip(accuracy.items(), "os", strict=True):
        axes.plot(range(len(LENGTHS)), values, marker=marker, label=way)
    axes.set_xticks(range(len(LENGTHS)), [str(length) for length in LENGTHS])
    axes.set_xlabel("max_length")
    axes.set_ylabel("accuracy")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
