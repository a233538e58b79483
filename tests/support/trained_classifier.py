"""A small trained classifier, for the tests of `bert-snli serve` and of other libraries."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch

from bert_snli.cli.quickstart import MODEL_SIZES, TRAINING_OPTIONS
from bert_snli.finetune import finetune_model
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
from bert_snli.tokenization import build_tokenizer
from bert_snli.training.arguments import FinetuneArguments
from tests.support.checkpoints import SPECIALS

MAX_LENGTH = 24
ANIMALS, ACTIVITIES, PLACES = (
    "dog cat horse bird".split(),
    "running sleeping eating".split(),
    "park house street".split(),
)
HYPOTHESES = {
    "entailment": "An animal is {doing} .",
    "contradiction": "Nobody is in the {place} .",
    "neutral": "The {animal} is hungry .",
}
PREMISE = "A {animal} is {doing} in the {place} ."
DOG = {"animal": "dog", "doing": "running", "place": "park"}
KNOWN_PAIRS = {  # label -> a pair for which the model predicts it
    label: (PREMISE.format(**DOG), hypothesis.format(**DOG)) for label, hypothesis in HYPOTHESES.items()
}


def train_classifier(folder: Path, classifier_head: str = "pooler") -> Path:
    """Fine-tune a model on generated pairs, which takes seconds; return its folder.

    It classifies all of `KNOWN_PAIRS` correctly.
    """
    generator = random.Random(0)
    words = {"animal": ANIMALS, "doing": ACTIVITIES, "place": PLACES}
    rows = []
    for number in range(600):
        chosen = {name: generator.choice(choices) for name, choices in words.items()}
        label = list(HYPOTHESES)[number % 3]
        hypothesis = HYPOTHESES[label].format(**chosen)
        rows.append({"premise": PREMISE.format(**chosen), "hypothesis": hypothesis, "label": label})
    (folder / "data").mkdir()
    for split, split_rows in {"train": rows, "dev": rows[:30]}.items():
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, split_rows)))
    vocabulary = sorted({word for row in rows for text in row.values() for word in text.lower().split()})
    tokenizer = build_tokenizer([*SPECIALS, *vocabulary, "``", "''", "n't"], model_max_length=128)
    torch.manual_seed(0)
    config = D2LBertConfig(vocab_size=len(tokenizer), **MODEL_SIZES)
    D2LBertForPreTraining(config).save_pretrained(folder / "base_model")
    tokenizer.save_pretrained(folder / "base_model")
    finetune_model(
        FinetuneArguments(
            model_name_or_path=str(folder / "base_model"),
            dataset_name_or_path=str(folder / "data"),
            output_dir=str(folder / "trained_classifier"),
            max_length=MAX_LENGTH,
            **{**TRAINING_OPTIONS, "classifier_head": classifier_head, "num_train_epochs": 5},
        )
    )
    return folder / "trained_classifier"
