"""Write the hard pairs of a split: a classifier that reads only the hypothesis fails on them (Gururangan et al., 2018).

    python benchmarks/hard_pairs.py snli_1.0.zip hard.jsonl [--split test]
    bert-snli evaluate runs/snli --dataset_name_or_path hard.jsonl

The published SNLI-hard has the pairs on which a fastText classifier fails. This script uses a logistic regression on
words and pairs of neighbouring words, so it gives a similar subset, but not the same one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bert_snli.console import run
from bert_snli.data.pair_files import check_writable
from bert_snli.data.snli import load_snli
from bert_snli.modeling.labels import D2L_LABELS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_name_or_path", help="a source of SNLI")
    parser.add_argument("output_file", type=Path, help=".jsonl of premise, hypothesis and label")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    options = parser.parse_args()
    check_writable(options.output_file)
    snli = load_snli(options.dataset_name_or_path, splits=["train", options.split]).splits
    train, pairs = snli["train"], snli[options.split]

    hypothesis_only = make_pipeline(
        CountVectorizer(ngram_range=(1, 2), binary=True, min_df=2, token_pattern=r"\w+|[^\w\s]"),
        LogisticRegression(C=0.1, max_iter=500),
    )
    hypothesis_only.fit(train["hypothesis"][:], train["label"][:])
    wrong_R = hypothesis_only.predict(pairs["hypothesis"][:]) != np.asarray(pairs["label"][:])
    with options.output_file.open("w", encoding="utf-8") as file:
        for row in pairs.select(np.flatnonzero(wrong_R)):
            file.write(json.dumps({**row, "label": D2L_LABELS[row["label"]]}) + "\n")
    right = 1 - wrong_R.mean()
    print(f"hypotheses alone: {right:.3f} of {len(pairs):,} right; the other {wrong_R.sum():,}: {options.output_file}")


if __name__ == "__main__":
    sys.exit(run(Path(__file__).name, main))
