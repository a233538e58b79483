"""`CrossEncoder` and `CrossEncoderTrainer` of sentence-transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, pipeline

from tests.support.clients import PAIRS, assert_same_logits, compute_logits, encode, import_or_skip, load_model

import_or_skip("sentence_transformers")

from sentence_transformers import CrossEncoder  # noqa: E402
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments  # noqa: E402

LONG_PREMISE = ("A dog is running in the park . " * 8, "The dog is hungry . " * 3)
LONG_HYPOTHESIS = LONG_PREMISE[::-1]


def test_cross_encoder_predicts_the_logits_and_probabilities_of_the_model(
    folder: Path, model: PreTrainedModel, logits: torch.Tensor
):
    encoder = CrossEncoder(str(folder), trust_remote_code=True)
    assert_same_logits(encoder.predict(PAIRS), logits, model.config)
    assert_same_logits(encoder.predict(PAIRS, apply_softmax=True), logits.softmax(dim=-1), model.config)


def test_cross_encoder_truncates_to_max_length_and_by_default_to_the_positions_of_the_model(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
):
    max_length = model.config.max_pair_length
    for options, length in (({"max_length": max_length}, max_length), ({}, model.config.max_position_embeddings)):
        encoder = CrossEncoder(str(folder), trust_remote_code=True, **options)
        assert encoder.max_seq_length == length
        inputs = encode(tokenizer, [LONG_PREMISE], truncation=True, max_length=length)
        assert_same_logits(encoder.predict([LONG_PREMISE]), compute_logits(model, inputs), model.config)


@pytest.mark.parametrize(
    ("max_length", "pair", "is_same"),
    [(24, LONG_PREMISE, True), (23, LONG_HYPOTHESIS, True), (24, LONG_HYPOTHESIS, False)],
)
def test_cross_encoder_and_pipeline_truncate_differently_if_the_hypothesis_is_longer_and_the_budget_odd(
    max_length: int, pair: tuple[str, str], is_same: bool, folder: Path, model: PreTrainedModel
):
    encoder = CrossEncoder(str(folder), trust_remote_code=True, max_length=max_length)
    (found,) = encoder.predict([pair], apply_softmax=True)
    nli = pipeline("natural-language-inference", str(folder), trust_remote_code=True)
    scores = {result["label"]: result["score"] for result in nli(pair, max_length=max_length, top_k=None)}
    expected = [scores[model.config.id2label[number]] for number in range(3)]
    assert (found.tolist() == pytest.approx(expected, abs=1e-6)) is is_same


def test_cross_encoder_trainer_trains_a_model_that_transformers_loads(
    folder: Path, model: PreTrainedModel, inputs: dict[str, torch.Tensor], logits: torch.Tensor, tmp_path: Path
):
    labels = (logits.argmax(dim=-1) + 1) % 3  # wrong ones: the loss begins high
    premises, hypotheses = map(list, zip(*PAIRS, strict=True))
    encoder = CrossEncoder(str(folder), trust_remote_code=True)
    arguments = CrossEncoderTrainingArguments(
        str(tmp_path / "run"),
        max_steps=30,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = Dataset.from_dict({"premise": premises, "hypothesis": hypotheses, "label": labels.tolist()})
    trainer = CrossEncoderTrainer(encoder, arguments, rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]

    encoder.save_pretrained(str(tmp_path / "trained"))
    trained = load_model(tmp_path / "trained")
    assert_same_logits(encoder.predict(PAIRS), compute_logits(trained, inputs), model.config)
    nli = pipeline("natural-language-inference", str(tmp_path / "trained"), trust_remote_code=True)
    assert [result["label"] for result in nli(PAIRS)] == [model.config.id2label[label] for label in labels.tolist()]
