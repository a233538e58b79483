"""Fine-tuning on a file of pairs with labels or with teacher predictions (`--train_file`)."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bert_snli.data.batching import GlobalBatchSampler
from bert_snli.data.snli import load_snli
from bert_snli.errors import BertSnliError
from bert_snli.files import read_history, write_history
from bert_snli.model_card import make_card
from bert_snli.modeling.labels import D2L_LABELS
from tests.support.d2l_reference import ReferenceBERT, ReferenceClassifier
from tests.support.finetuning import BATCH, ROWS, encode_rows, run_finetune

STEPS = 8
pytestmark = pytest.mark.usefixtures("without_plots")


def write_pairs(path: Path, corpus: Path, predictions: list[dict]) -> Path:
    """Write the first training pairs of `corpus` with `predictions`."""
    pairs = load_snli(str(corpus), splits=["train"]).splits["train"].select(range(len(predictions)))
    lines = (
        json.dumps({"premise": pair["premise"], "hypothesis": pair["hypothesis"], **prediction})
        for pair, prediction in zip(pairs, predictions, strict=True)
    )
    path.write_text("\n".join(lines) + "\n")
    return path


def gold_labels(corpus: Path) -> list[str]:
    labels = load_snli(str(corpus), splits=["train"]).splits["train"]["label"][:ROWS]
    return [D2L_LABELS[number] for number in labels]


def as_predictions(probabilities: np.ndarray, names: tuple[str, ...] = D2L_LABELS) -> list[dict]:
    """Return rows as `bert-snli predict` writes them: the most probable label, and the scores from high to low."""
    rows = []
    for row in probabilities.tolist():
        scores = sorted(zip(names, row, strict=True), key=lambda item: -item[1])
        rows.append({"label": scores[0][0], "scores": dict(scores)})
    return rows


@pytest.fixture
def probabilities() -> np.ndarray:
    """Random teacher predictions, independent of the labels."""
    return np.random.default_rng(0).dirichlet([0.5] * 3, ROWS)


def test_losses_on_a_file_equal_those_on_the_same_rows_of_snli(base_model: Path, corpus: Path, tmp_path: Path):
    changes = {"text_source": "raw", "max_steps": STEPS}
    expected = run_finetune(base_model, corpus, tmp_path / "split", **changes)
    one_hot = np.eye(3)[[D2L_LABELS.index(label) for label in gold_labels(corpus)]]
    kinds = {"labels": [{"label": label} for label in gold_labels(corpus)], "scores": as_predictions(one_hot)}
    for kind, predictions in kinds.items():
        file = write_pairs(tmp_path / f"{kind}.jsonl", corpus, predictions)
        losses = run_finetune(base_model, corpus, tmp_path / kind, train_file=str(file), **changes)
        np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-6, err_msg=kind)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_loss_is_the_cross_entropy_with_the_teacher_probabilities(
    micro_batches: int,
    base_model: Path,
    corpus: Path,
    vocabulary: list[str],
    classifier_weights,
    probabilities: np.ndarray,
    tmp_path: Path,
):
    file = write_pairs(tmp_path / "predictions.jsonl", corpus, as_predictions(probabilities))
    changes = {"text_source": "raw", "max_steps": STEPS, "num_micro_batches": micro_batches}
    losses = run_finetune(base_model, corpus, tmp_path / "run", train_file=str(file), **changes)

    net = ReferenceClassifier(ReferenceBERT(vocab=len(vocabulary)))
    net.load_state_dict(classifier_weights)
    tokens, segments, valid_lens, _ = encode_rows(corpus, vocabulary)
    sampler = GlobalBatchSampler(valid_lens.long().numpy(), BATCH, seed=42, strategy="random")
    trainer = torch.optim.Adam(net.parameters(), lr=1e-4)
    expected: list[float] = []
    while len(expected) < STEPS:
        sampler.set_epoch(len(expected) // sampler.batches_per_epoch)
        for batch in sampler.global_batches()[: STEPS - len(expected)]:
            logits = net(tokens[batch], segments[batch], valid_lens[batch])
            loss = -(torch.tensor(probabilities[batch]) * logits.double().log_softmax(-1)).sum()
            trainer.zero_grad()
            loss.backward()
            trainer.step()
            expected.append(loss.item() / len(batch))
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)


def test_resume_is_refused_with_other_teacher_predictions(
    base_model: Path,
    corpus: Path,
    probabilities: np.ndarray,
    tmp_path: Path,
):
    file = write_pairs(tmp_path / "predictions.jsonl", corpus, as_predictions(probabilities))
    changes = {"text_source": "raw", "train_file": str(file), "save_steps": 2}
    run_finetune(base_model, corpus, tmp_path / "run", max_steps=2, **changes)
    write_pairs(file, corpus, as_predictions(probabilities[:, ::-1]))
    with pytest.raises(BertSnliError, match="checkpoint-2: was written with other pairs"):
        run_finetune(base_model, corpus, tmp_path / "run", max_steps=4, resume_from_checkpoint="auto", **changes)


def test_training_history_of_base_model_and_file_is_kept(
    base_model: Path, corpus: Path, probabilities: np.ndarray, tmp_path: Path
):
    model, file = (
        tmp_path / "base_model",
        write_pairs(tmp_path / "predictions.jsonl", corpus, as_predictions(probabilities)),
    )
    shutil.copytree(base_model, model)
    write_history(model, ["Pretrained on <text>."])
    write_history(file, ["Predicted\nby a teacher."])
    assert (tmp_path / "predictions.jsonl.provenance.md").read_text() == "- Predicted by a teacher.\n"
    run_finetune(model, corpus, tmp_path / "run", text_source="raw", train_file=str(file), max_steps=1)
    steps = ["Pretrained on <text>.", "Predicted by a teacher.", "Fine-tuned on pairs of `predictions.jsonl`."]
    assert read_history(tmp_path / "run") == steps
    assert f"pairs of `{file}`:" in (tmp_path / "run" / "report.md").read_text()
    card = make_card(tmp_path / "run", "user/name", license="mit")
    assert "".join(f"1. {step}\n" for step in map(html.escape, steps)) in card
    (tmp_path / "predictions.jsonl.provenance.md").write_bytes(b"\xff")
    with pytest.raises(BertSnliError, match="predictions.jsonl.provenance.md: cannot be read"):
        run_finetune(model, corpus, tmp_path / "other", text_source="raw", train_file=str(file))
    assert not (tmp_path / "other").exists()


PAIR = {"premise": "A dog.", "hypothesis": "A cat."}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**PAIR, "scores": {"entailment": 0.5, "neutral": 0.2, "contradiction": 0.2}}, "row 2: .* add up to 1"),
        ({**PAIR, "scores": {"entailment": 1.5, "neutral": -0.5, "contradiction": 0.0}}, "row 2"),
        ({**PAIR, "scores": {"entailment": 0.5, "neutral": 0.5, "contradiction": None}}, "row 2"),
        ({**PAIR, "scores": None}, "row 2"),
        ({"premise": None, "hypothesis": "A cat.", "scores": dict.fromkeys(D2L_LABELS, 1 / 3)}, "row 2"),
    ],
    ids=["sum-below-1", "out-of-range", "missing-score", "missing-scores", "missing-premise"],
)
def test_row_with_invalid_scores_is_refused(
    row: dict,
    message: str,
    base_model: Path,
    corpus: Path,
    tmp_path: Path,
):
    valid = {**PAIR, "scores": dict.fromkeys(D2L_LABELS, 1 / 3)}
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in (valid, row)))
    with pytest.raises(BertSnliError, match=message) as caught:
        run_finetune(base_model, corpus, tmp_path / "run", text_source="raw", train_file=str(file))
    assert str(caught.value).startswith(f"train_file {file}: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["nowhere.jsonl", ""], ids=["missing-file", "folder"])
def test_train_file_that_is_not_a_file_is_refused(
    name: str,
    base_model: Path,
    corpus: Path,
    tmp_path: Path,
):
    with pytest.raises(BertSnliError, match="^train_file .*: not an existing file of type .jsonl, "):
        run_finetune(base_model, corpus, tmp_path / "run", train_file=str(tmp_path / name))
