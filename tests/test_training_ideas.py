"""benchmarks/training_ideas.py: each idea is what its paper says, and changes a run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from benchmarks import training_ideas as ideas
from bert_snli import finetune
from bert_snli.data.batching import IGNORED_LABEL
from bert_snli.training import session
from bert_snli.training.objectives import Classification
from tests.test_training import book_classifier, start, vocabulary  # noqa: F401 (fixtures)

PATCHED = [
    *((finetune, name) for name in ("Classification", "D2LBertForSequenceClassification", "load_snli", "prepare")),
    (session, "make_optimizer"),
]
LABELS = torch.tensor([2, 0, IGNORED_LABEL, 1])


@pytest.fixture(autouse=True)
def nothing_stays_changed(monkeypatch: pytest.MonkeyPatch):
    for module, name in PATCHED:
        monkeypatch.setattr(module, name, getattr(module, name))


class Answers(nn.Module):
    """A model that gives logits in turn, and keeps the inputs that it was asked with."""

    def __init__(self, *logits: torch.Tensor):
        super().__init__()
        self.logits, self.inputs = list(logits), []

    def forward(self, **inputs) -> SequenceClassifierOutput:
        self.inputs.append(inputs)
        return SequenceClassifierOutput(logits=self.logits[len(self.inputs) - 1])


def objective(idea) -> Classification:
    idea()
    return finetune.Classification("mean")


def test_smoothing_is_that_of_torch_where_a_label_counts():
    logits = torch.randn(4, 3)
    loss, sums = objective(ideas.label_smoothing)(Answers(logits), {"labels": LABELS.clone()}, np.arange(4))
    expected = nn.functional.cross_entropy(logits, LABELS, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(loss, expected / 4)
    assert sums[2] == 3


def test_r_drop_adds_half_the_divergence_both_ways():
    first, second = torch.randn(2, 4, 3)
    labels = LABELS.clamp(min=0)
    loss, _ = objective(ideas.r_drop)(Answers(first, second), {"labels": labels}, np.arange(4))
    p, q = (torch.distributions.Categorical(logits=logits) for logits in (first, second))
    kl = torch.distributions.kl_divergence
    cross_entropies = sum(nn.functional.cross_entropy(logits, labels) for logits in (first, second))
    torch.testing.assert_close(loss, (cross_entropies + (kl(p, q) + kl(q, p)).mean()) / 2)


def test_a_tenth_of_the_words_is_dropped_and_never_the_first():
    model, mask = Answers(torch.zeros(200, 3)), torch.ones(200, 50, dtype=torch.long)
    mask[:, 40:] = 0
    objective(ideas.word_dropout)(
        model, {"labels": torch.zeros(200, dtype=torch.long), "attention_mask": mask}, np.arange(200)
    )
    seen = model.inputs[0]["attention_mask"]
    assert seen[:, 0].all() and not seen[:, 40:].any()
    assert 0.09 < 1 - seen[:, 1:40].float().mean() < 0.11


def run(idea: str, model: Path, corpus: Path, folder: Path, *options: object) -> dict[str, torch.Tensor]:
    """What a short run with `idea` ends with: the weights."""
    command = ["--model_name_or_path", model, "--dataset_name_or_path", corpus, "--max_length", 32]
    command += ["--train_batch_size", 16, "--max_steps", 4, "--seed", 1, "--mixed_precision", "no", *options]
    if idea:
        ideas.IDEAS[idea]()
    assert finetune.main([*map(str, command), "--output_dir", str(folder)]) == 0
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("idea", ideas.IDEAS)
def test_an_idea_changes_what_a_run_ends_with(idea: str, start: Path, corpus: Path, tmp_path: Path):  # noqa: F811
    options = ["--fast_forward", "false"] if idea == "embedding_noise" else []
    plain = run("", start, corpus, tmp_path / "plain", *options)
    changed = run(idea, start, corpus, tmp_path / "changed", *options)
    assert plain.keys() == changed.keys()
    assert not torch.equal(plain["classifier.weight"], changed["classifier.weight"])
    assert all(weight.isfinite().all() for weight in changed.values())


def test_without_an_idea_the_ideas_are_listed(run_python):
    done = run_python("benchmarks/training_ideas.py", "better")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert all(name in done.stderr for name in ideas.IDEAS)
