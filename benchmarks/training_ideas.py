"""Ideas for fine-tuning that `bert-snli finetune` does not have: each one measured before it moves in, or does not.

    python benchmarks/training_ideas.py r_drop --model_name_or_path models/words-captions \\
        --dataset_name_or_path snli_1.0.zip --seed 1 --output_dir runs/r_drop-1

The first word is the idea, the rest are options of `bert-snli finetune`. docs/accuracy.md has what came of them.

Shape suffixes: B rows, L positions, D hidden size, C labels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bert_snli import finetune
from bert_snli.data.batching import uncounted
from bert_snli.data.snli import SNLI, load_evaluation_set, load_snli
from bert_snli.labels import BOOK_LABELS
from bert_snli.training import session
from bert_snli.training.loop import TrainingLoop
from bert_snli.training.objectives import Classification

SMOOTHING = 0.1  # share of each label's probability that is spread over all
R_DROP = 1.0  # weight of the two passes' divergence
WORDS_DROPPED = 0.1
AVERAGE = 0.995  # of each update, what stays of the mean before it
RATE_BELOW = 0.7  # rate of a layer, as a share of that of the next one up
NOISE = 5.0  # NEFTune's alpha


def label_smoothing() -> None:
    """A little of each label's probability goes to the others (Szegedy et al., 2016)."""

    class Smoothed(Classification):
        def __call__(self, model, batch, rows):
            labels_B = batch["labels"]
            counted_B1 = (labels_B != uncounted(labels_B))[:, None]
            labels_BC = nn.functional.one_hot(labels_B.clamp(min=0), len(BOOK_LABELS)).float()
            batch["labels"] = ((1 - SMOOTHING) * labels_BC + SMOOTHING / len(BOOK_LABELS)) * counted_B1
            return super().__call__(model, batch, rows)

    finetune.Classification = Smoothed


def r_drop() -> None:
    """Two passes with different dropout are to agree (Wu et al., 2021)."""

    class RDrop(Classification):
        def __call__(self, model, batch, rows):
            outputs: list[SequenceClassifierOutput] = []

            def recorded(**inputs):
                outputs.append(model(**inputs))
                return outputs[-1]

            (loss, _), (other, sums) = (Classification.__call__(self, recorded, dict(batch), rows) for _ in range(2))
            first_BC, second_BC = (output.logits.log_softmax(dim=-1) for output in outputs)
            # KL(p, q) + KL(q, p), in one sum.
            divergence = ((first_BC.exp() - second_BC.exp()) * (first_BC - second_BC)).sum() / len(rows)
            return (loss + other + R_DROP * divergence) / 2, sums

    finetune.Classification = RDrop


def word_dropout() -> None:
    """Some words of each pair are not seen: nothing attends to them (Iyyer et al., 2015)."""

    class WordDropout(Classification):
        def __call__(self, model, batch, rows):
            seen_BL = torch.rand(batch["attention_mask"].shape) >= WORDS_DROPPED
            seen_BL[:, 0] = True
            batch["attention_mask"] = batch["attention_mask"] * seen_BL
            return super().__call__(model, batch, rows)

    finetune.Classification = WordDropout


def embedding_noise() -> None:
    """Uniform noise on the embedded input (NEFTune: Jain et al., 2023); needs `--fast_forward false`."""

    class Noisy(finetune.D2LBertForSequenceClassification):
        _auto_class = None

        def __init__(self, config):
            super().__init__(config)
            self.bert.embeddings.register_forward_hook(self.add_noise)

        def add_noise(self, embeddings, inputs, embedded_BLD):
            if not self.training:
                return embedded_BLD
            _, length, width = embedded_BLD.shape
            return embedded_BLD + torch.empty_like(embedded_BLD).uniform_(-1, 1) * NOISE * (length * width) ** -0.5

    finetune.D2LBertForSequenceClassification = Noisy


def layer_rates() -> None:
    """Lower layers learn more slowly (Howard and Ruder, 2018)."""
    make_optimizer = session.make_optimizer

    def with_rates(model: nn.Module, *options):
        optimizer = make_optimizer(model, *options)
        blocks = model.config.num_hidden_layers
        below = {}
        for name, parameter in model.named_parameters():
            if "encoder.layer." in name:
                below[parameter] = blocks - int(name.partition("encoder.layer.")[2].partition(".")[0])
            else:
                below[parameter] = 0 if "pooler" in name or "classifier" in name else blocks + 1
        groups = []
        for group in optimizer.param_groups:
            for depth in sorted({below[parameter] for parameter in group["params"]}):
                chosen = [parameter for parameter in group["params"] if below[parameter] == depth]
                groups.append({**group, "params": chosen, "lr": group["lr"] * RATE_BELOW**depth})
        optimizer.param_groups.clear()
        for group in groups:
            optimizer.add_param_group(group)
        return optimizer

    session.make_optimizer = with_rates


def weight_averaging() -> None:
    """What is evaluated and kept is a running mean of the weights (Polyak and Juditsky, 1992)."""
    prepare = finetune.prepare

    def averaged(*arguments) -> TrainingLoop:
        loop = prepare(*arguments)
        parameters = [p for p in loop.model.parameters() if p.requires_grad]
        means = [p.detach().clone() for p in parameters]
        evaluate = loop.evaluate

        def follow(*_):
            for mean, parameter in zip(means, parameters, strict=True):
                mean.lerp_(parameter.detach(), 1 - AVERAGE)

        def swap():
            for mean, parameter in zip(means, parameters, strict=True):
                kept = parameter.detach().clone()
                parameter.data.copy_(mean)
                mean.copy_(kept)

        save_model = loop.save_model

        def evaluate_mean():
            swap()
            try:
                return evaluate()
            finally:
                swap()

        def save_mean():
            swap()
            save_model()
            swap()

        loop.optimizer.optimizer.register_step_post_hook(follow)
        loop.evaluate, loop.save_model = evaluate_mean, save_mean
        return loop

    finetune.prepare = averaged


def change_training_split(change: Callable[[Dataset, str], Dataset]) -> None:
    """Let `change` have the training split, and where it is from."""

    def load(source: str, **options) -> SNLI:
        snli = load_snli(source, **options)
        snli.splits["train"] = change(snli.splits["train"], source)
        return snli

    finetune.load_snli = load


def annotators() -> None:
    """Where several annotators answered, their shares are learnt, not the gold label alone."""

    def shares(train: Dataset, source: str) -> Dataset:
        votes = np.asarray(load_evaluation_set(source, split="train").pairs["votes"][:], dtype=np.float32)
        gold = np.eye(len(BOOK_LABELS), dtype=np.float32)[train["label"][:]]
        votes = np.where(votes.sum(axis=1, keepdims=True) > 1, votes, gold)
        features = Features({**train.features, "label": List(Value("float32"))})
        columns = {**train[:], "label": list(votes / votes.sum(axis=1, keepdims=True))}
        return Dataset.from_dict(columns, features=features)

    change_training_split(shares)


def swapped_contradictions() -> None:
    """Contradictions are learnt the other way round as well: in SNLI, both sentences are of one photograph."""

    def both_ways(train: Dataset, source: str) -> Dataset:
        contradiction = BOOK_LABELS.index("contradiction")
        pairs = train.filter(lambda label: label == contradiction, input_columns="label")
        names = {"premise": "hypothesis", "hypothesis": "premise"}
        return concatenate_datasets([train, pairs.rename_columns(names).select_columns(train.column_names)])

    change_training_split(both_ways)


IDEAS = {
    idea.__name__: idea
    for idea in (
        label_smoothing,
        r_drop,
        word_dropout,
        embedding_noise,
        layer_rates,
        weight_averaging,
        annotators,
        swapped_contradictions,
    )
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in IDEAS:
        ideas = "\n".join(f"  {name:24}{idea.__doc__}" for name, idea in IDEAS.items())
        print(f"{__doc__}\nideas:\n{ideas}", file=sys.stderr)
        return 2
    IDEAS[sys.argv[1]]()
    return finetune.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
