"""Make new pairs from the sentences of a training split, for a teacher to label. The script reads no labels.

It pairs the captions of a photograph with its hypotheses and with each other, and each premise with some hypotheses of
similar photographs. `--of_hypotheses` adds pairs of hypotheses of one photograph. The source must have the column
`captionID`, as Stanford's zip has.

    python examples/teacher/recombine.py snli_1.0.zip pairs.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm.auto import tqdm

from bert_snli.console import run
from bert_snli.data.pair_files import check_writable
from bert_snli.data.sources import read_split

NEIGHBOURS = 30  # photographs with the most similar premises, by TF-IDF
OF_OTHERS = 3  # hypotheses of similar photographs for each premise


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_name_or_path", help="a source of SNLI with the column captionID")
    parser.add_argument("output_file", type=Path, help="the .jsonl file to write, with premise and hypothesis")
    parser.add_argument("--of_hypotheses", type=int, default=0, help="pairs of hypotheses for each photograph")
    options = parser.parse_args(argv)
    check_writable(options.output_file)
    rows, _ = read_split(options.dataset_name_or_path, "train")
    random = np.random.default_rng(0)

    premises: dict[str, dict] = defaultdict(dict)  # a dict, because a set has no order
    hypotheses: dict[str, dict] = defaultdict(dict)
    for row in rows:
        image = row["captionID"].partition("#")[0]
        premises[image][row["sentence1"]] = None
        hypotheses[image][row["sentence2"]] = None
    known = dict.fromkeys(zip(rows["sentence1"], rows["sentence2"], strict=True))

    made: dict[tuple[str, str], None] = {}
    for image in premises:
        made.update(dict.fromkeys(product(premises[image], hypotheses[image])))
        made.update(dict.fromkeys(permutations(premises[image], 2)))
    images = list(premises)
    neighbours = min(NEIGHBOURS, len(images) - 1)
    texts = [" ".join(premises[image]) for image in images]
    vectors = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit_transform(texts)
    for place, image in enumerate(tqdm(images, unit="photograph")):
        alike = (vectors @ vectors[place].T).toarray()[:, 0]
        alike[place] = -1
        near = np.argpartition(-alike, neighbours)[:neighbours]
        theirs = [hypothesis for other in near for hypothesis in hypotheses[images[other]]]
        for premise in premises[image]:
            for chosen in random.choice(len(theirs), min(OF_OTHERS, len(theirs)), replace=False):
                made[premise, theirs[chosen]] = None
    for own in map(list, hypotheses.values() if options.of_hypotheses else ()):
        for place in random.permutation(len(own) * (len(own) - 1))[: options.of_hypotheses]:
            first, second = divmod(place, len(own) - 1)
            made[own[first], own[second + (second >= first)]] = None  # a hypothesis is not paired with itself
    new = [pair for pair in made if pair not in known]
    with open(options.output_file, "w", encoding="utf-8") as file:
        for place in random.permutation(len(new)):
            premise, hypothesis = new[place]
            file.write(json.dumps({"premise": premise, "hypothesis": hypothesis}) + "\n")
    print(f"{len(new):,} pairs")


if __name__ == "__main__":
    sys.exit(run(Path(__file__).name, main))
