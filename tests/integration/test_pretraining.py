"""Pretraining against the book's own preparation, loss and loop; its model folder; what else it can be told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    pipeline,
)

from bert_snli.cli import main
from bert_snli.data.batching import GlobalBatchSampler, Piece
from bert_snli.data.pretraining import (
    MaskedPairs,
    SentenceEncoder,
    draw_masks,
    draw_pairs,
    encode_corpus,
    num_predictions,
    pair_up,
)
from bert_snli.data.sample import write_sample
from bert_snli.data.text import Paragraphs, SentenceSplitter, _read_hub, count_words, open_text, split_sentences
from bert_snli.errors import BertSnliError
from bert_snli.fast import cross_entropy
from bert_snli.fast.cross_entropy import linear_cross_entropy
from bert_snli.fast.forward import FastPreTraining
from bert_snli.finetune import finetune
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
from bert_snli.pretrain import evaluate, parse_recipe, pretrain
from bert_snli.provenance import read_steps
from bert_snli.tokenization import build_tokenizer
from bert_snli.training.recipe import FinetuneRecipe
from bert_snli.training.session import fingerprint
from conversion.convert import convert
from tests.support.checkpoints import SPECIALS, save_d2l_checkpoint
from tests.support.command_line import error_line
from tests.support.d2l_pretraining_reference import mask_tokens, pretraining_loss, read_paragraphs, sentence_pairs
from tests.support.d2l_reference import ReferenceBERT
from tests.support.finetuning import metrics

MAX_LENGTH = 40
STEPS, BATCH, RATE = 12, 32, 1e-3
TINY = "--hidden_size 16 --intermediate_size 24 --num_attention_heads 2 --num_hidden_layers 2 --min_freq 1".split()


@pytest.fixture(scope="module")
def lines(corpus: Path) -> list[str]:
    """Paragraphs of the generated corpus's premises, tokenized as WikiText is; and lines that are none."""
    rows = [json.loads(row) for row in (corpus / "snli_1.0_train.jsonl").read_text().splitlines()]
    sentences = [row["sentence1"].rstrip(".") for row in rows]
    random = np.random.default_rng(0)
    paragraphs, begin = [], 0
    while begin < len(sentences):
        size = int(random.integers(1, 7))
        paragraphs.append(" " + " . ".join(sentences[begin : begin + size]) + " . \n")
        begin += size
    return [" = Heading = \n", " \n", *paragraphs, " A sentence alone . \n"]


@pytest.fixture(scope="module")
def wiki(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as WikiText-2's is, without its test split."""
    folder = tmp_path_factory.mktemp("wiki")
    (folder / "wiki.train.tokens").write_text("".join(lines), encoding="utf-8")
    (folder / "wiki.valid.tokens").write_text("".join(lines[::-3]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def vocabulary(lines: list[str]) -> list[str]:
    return SPECIALS + sorted({word for line in lines for word in line.lower().split()})


@pytest.fixture(scope="module")
def book_weights(vocabulary: list[str]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return ReferenceBERT(vocab=len(vocabulary)).state_dict()


@pytest.fixture(scope="module")
def start(book_weights, vocabulary: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    convert(save_d2l_checkpoint(folder / "book", book_weights, vocabulary), folder / "hf", num_attention_heads=2)
    return folder / "hf"


def paragraphs(source: Path) -> Paragraphs:
    text = open_text(str(source), None, "raw")
    return split_sentences(text, SentenceSplitter(build_tokenizer(SPECIALS, model_max_length=9), text.tokenized))


def masked_pairs(wiki: Path, vocabulary: list[str], seed: int = 7, **options) -> MaskedPairs:
    tokenizer = build_tokenizer(vocabulary, model_max_length=MAX_LENGTH)
    corpus = encode_corpus(paragraphs(wiki).train, tokenizer)
    pairs = pair_up(corpus, draw_pairs(corpus, seed), tokenizer, MAX_LENGTH)
    return MaskedPairs(pairs, tokenizer, seed=seed, **options)


def book_examples(lines: list[str], vocabulary: list[str], wiki: Path, seed: int, epoch: int) -> list[tuple]:
    """(tokens to read, positions, words, segments, is_next) by the book's rules, from the draws of `seed`."""
    tokenizer = build_tokenizer(vocabulary, model_max_length=MAX_LENGTH)
    draws = draw_pairs(encode_corpus(paragraphs(wiki).train, tokenizer), seed)
    pairs = list(sentence_pairs(read_paragraphs(lines), *map(iter, draws), MAX_LENGTH))
    lengths = np.array([len(tokens) for tokens, _, _ in pairs])
    masks = draw_masks(int(lengths.sum()), int(num_predictions(lengths).sum()), len(vocabulary), seed, epoch)
    order, masked, kept = (iter(draw.tolist()) for draw in masks[:3])
    words = (vocabulary[word] for word in masks.word_P)
    return [
        (*mask_tokens(tokens, order, masked, kept, words), segments, is_next) for tokens, segments, is_next in pairs
    ]


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_examples_are_the_books(lines: list[str], vocabulary: list[str], wiki: Path, epoch: int):
    """The same pairs, masks and labels as the book's lists of strings give, from the same draws."""
    pairs = masked_pairs(wiki, vocabulary)
    pairs.set_epoch(epoch)
    examples = book_examples(lines, vocabulary, wiki, 7, epoch)
    assert len(pairs) == len(examples) > 150
    for row, (read, positions, words, segments, is_next) in enumerate(examples):
        batch = pairs[Piece([row], counted=True)]
        assert [vocabulary[i] for i in batch["input_ids"][0]] == read
        assert batch["token_type_ids"][0].tolist() == segments
        assert batch["predicted"][0].tolist() == positions
        assert [vocabulary[i] for i in batch["labels"][0]] == words
        assert batch["next_sentence_label"].item() == is_next
    assert 0.35 < np.mean([is_next for *_, is_next in examples]) < 0.65


def test_the_shares_are_the_books(wiki: Path, vocabulary: list[str]):
    pairs = masked_pairs(wiki, vocabulary)
    fates: Counter[str] = Counter()
    for epoch in range(40):
        pairs.set_epoch(epoch)
        for row in range(len(pairs)):
            batch = pairs[Piece([row], counted=True)]
            for column, word in zip(batch["predicted"][0].tolist(), batch["labels"][0].tolist(), strict=True):
                read = batch["input_ids"][0, column].item()
                fates["mask" if vocabulary[read] == "<mask>" else "kept" if read == word else "other"] += 1
    total = sum(fates.values())
    # A random word is the word itself, or <mask>, once in the vocabulary.
    assert fates["mask"] / total == pytest.approx(0.8, abs=0.01)
    assert fates["kept"] / total == pytest.approx(0.1, abs=0.01)
    assert total / 40 / pairs.lengths.sum() == pytest.approx(0.15, abs=0.02)


def test_masks_are_drawn_anew_unless_static(wiki: Path, vocabulary: list[str]):
    def ids(pairs: MaskedPairs, epoch: int) -> list[int]:
        pairs.set_epoch(epoch)
        return pairs.tokens["input_ids"].tolist()

    dynamic, static = masked_pairs(wiki, vocabulary), masked_pairs(wiki, vocabulary, static_masks=True)
    assert ids(dynamic, 1) != ids(dynamic, 2) != ids(dynamic, 3)
    assert ids(dynamic, 2) == ids(masked_pairs(wiki, vocabulary), 2) != ids(masked_pairs(wiki, vocabulary, 8), 2)
    assert ids(static, 1) == ids(static, 2) == ids(dynamic, 0)


def test_a_stand_in_row_does_not_count(wiki: Path, vocabulary: list[str]):
    batch = masked_pairs(wiki, vocabulary)[Piece([3], counted=False)]
    assert set(batch["labels"].flatten().tolist()) == set(batch["next_sentence_label"].tolist()) == {-100}


def test_words_are_counted_as_the_book_counts_them(lines: list[str], wiki: Path):
    counts = Counter(word for paragraph in read_paragraphs(lines) for sentence in paragraph for word in sentence)
    words = count_words(paragraphs(wiki).train, 5)
    assert words[:5] == SPECIALS
    assert set(words[5:]) == {word for word, count in counts.items() if count >= 5} - set(SPECIALS)
    assert words[5:] == sorted(words[5:], key=lambda word: (-counts[word], word))  # the same in every process


def test_typed_text_is_split_as_tokenized_text_is(wiki: Path, tmp_path: Path):
    """`He can't. She (Ann) can.` is what the leaves `he ca n't . she -LRB- ann -RRB- can .` are."""
    typed = 'He can\'t go. She (Ann) can! I "know" it.\nOne sentence.\n\nMr. Smith left. So did we.\n\n\n'
    (tmp_path / "book.txt").write_text(typed, encoding="utf-8")
    split = paragraphs(tmp_path / "book.txt")
    assert split.eval_split == "held-out"
    assert list(split.train["sentences"]) == [
        ["he ca n't go", "she -lrb- ann -rrb- can ! i `` know '' it ."],
        ["one sentence ."],  # as the book has it: no pair begins in it, but others may end in it
    ]
    assert list(split.evaluation["sentences"]) == [["mr. smith left", "so did we ."]]


def test_a_folder_of_texts_is_one_text_without_what_is_hidden(tmp_path: Path):
    for name in ("b.txt", "a.txt", ".c.txt", "d.csv"):
        (tmp_path / name).write_text(f"{name} is here. And there is more.\n" * 30, encoding="utf-8")
    split = paragraphs(tmp_path)
    assert (len(split.train), len(split.evaluation)) == (57, 3)
    assert split.train[0]["sentences"][0] == "a.txt is here"
    assert split.evaluation[0]["sentences"][0] == "b.txt is here"


def test_texts_that_are_named_as_splits_are_splits(tmp_path: Path):
    for name in ("test.txt", "train.txt", "dev.txt"):
        (tmp_path / name).write_text(f"{name} is here. And there is more.\n" * 30, encoding="utf-8")
    split = paragraphs(tmp_path)
    assert split.eval_split == "validation"
    assert (len(split.train), len(split.evaluation)) == (30, 30)
    assert split.train[0]["sentences"][0] == "train.txt is here"
    assert split.evaluation[0]["sentences"][0] == "dev.txt is here"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train.txt", "valid.txt", "dev.txt"], "both dev.txt and valid.txt are the validation split; keep one"),
        (["train.md", "train.txt"], "both train.md and train.txt are the train split; keep one"),
        (
            ["valid.txt", "test.txt"],
            "has test.txt, valid.txt but no train split; add the text to train on as train.txt",
        ),
        (["train.txt", "valid.txt", "notes.txt"], "train.txt is a split but notes.txt is none; name the text to train"),
        (["notes.txt", "valid.txt"], "valid.txt is a split but notes.txt is none; name the text to train on train.txt"),
        (["README.md", "LICENSE.txt"], "holds no text to train on (README and LICENSE files are not read); add it as"),
        ([], "holds no text to train on (README and LICENSE files are not read); add it as train.txt"),
        (["wiki.valid.tokens", "wiki.test.tokens"], "has wiki.valid.tokens, wiki.test.tokens but no train split; add"),
    ],
)
def test_pretrain_refuses_a_folder_whose_train_split_is_unclear(
    names: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "data").mkdir()
    for name in names:
        (tmp_path / "data" / name).write_text("one line . of two sentences . \n" * 30, encoding="utf-8")
    command = ["pretrain", "--dataset_name_or_path", tmp_path / "data", "--output_dir", tmp_path / "run", *TINY]
    assert f"{tmp_path / 'data'}: {message}" in error_line([*command, "--max_steps", 1], capsys)
    assert not (tmp_path / "run").exists()


def test_documentation_in_a_folder_of_text_is_not_read(tmp_path: Path):
    for name in ("README.md", "license.txt", "train.txt", "valid.txt"):
        (tmp_path / name).write_text(f"{name} is here. And there is more.\n" * 3, encoding="utf-8")
    splits = open_text(str(tmp_path), None, "raw").splits
    assert {split: rows[0]["text"].split()[0] for split, rows in splits.items()} == {
        "train": "train.txt",
        "validation": "valid.txt",
    }
    (tmp_path / "train.txt").unlink()
    (tmp_path / "valid.txt").rename(tmp_path / "book.txt")
    assert len(open_text(str(tmp_path), None, "raw").splits["train"]) == 3
    assert len(open_text(str(tmp_path / "README.md"), None, "raw").splits["train"]) == 3  # named by the user


def test_readme_next_to_snli_is_not_taken_for_the_text(corpus: Path, tmp_path: Path):
    for path in corpus.glob("*.jsonl"):
        shutil.copy(path, tmp_path)
    (tmp_path / "README.txt").write_text("SNLI is here. And there is more.\n", encoding="utf-8")
    assert "premise" in open_text(str(tmp_path), None, "raw").splits["train"].column_names


def test_dataset_without_a_train_split_is_refused(tmp_path: Path):
    (tmp_path / "validation.txt").write_text("A dog runs. It sleeps.\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("A cat runs. It sleeps.\n", encoding="utf-8")
    with pytest.raises(BertSnliError, match="has no train split, only validation, test; choose a dataset that has one"):
        _read_hub(str(tmp_path), None)


def test_special_tokens_in_a_text_are_unknown_words(vocabulary: list[str]):
    tokenizer = build_tokenizer(vocabulary, model_max_length=9)
    encoded = SentenceEncoder(tokenizer)({"sentences": [["<cls> <sep> <mask>", "<pad> <unk> nowhere"]]})
    assert encoded == {"ids": [[tokenizer.unk_token_id] * 6], "lengths": [[3, 3]]}


def test_the_hubs_datasets_are_read_as_what_they_are(monkeypatch: pytest.MonkeyPatch):
    """Its own WikiText is tokenized; others are typed, whatever the default of an option says."""
    asked = []

    def load(name, config=None):
        asked.append((name, config))
        return DatasetDict({"train": Dataset.from_dict({"text": ["He can't. She can."] * 3})})

    monkeypatch.setattr("bert_snli.data.text.load_dataset", load)
    for name, config, tokenized in (
        ("Salesforce/wikitext", None, True),
        ("Salesforce/wikitext", "wikitext-2-raw-v1", False),
        ("someone/stories-1.0", None, False),
    ):
        assert open_text(name, config, "raw").tokenized is tokenized
    assert asked == [
        ("Salesforce/wikitext", "wikitext-2-v1"),
        ("Salesforce/wikitext", "wikitext-2-raw-v1"),
        ("someone/stories-1.0", None),
    ]


@pytest.mark.parametrize(("limit", "most"), [("LOGITS_AT_ONCE", 50 * 7), ("ROWS_AT_ONCE", 7)])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_the_chunked_cross_entropy_is_pytorchs(rows: int, limit: str, most: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cross_entropy, limit, most)
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 50).double()
    hidden = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(50, (rows,))
    labels[::3] = -100
    logits = linear(hidden)
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    expected = torch.autograd.grad(3 * plain, [hidden, *linear.parameters()])
    loss, right = linear_cross_entropy(hidden, linear, labels)
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=1e-12)
    assert right == (logits.argmax(dim=-1) == labels).sum()
    for ours, theirs in zip(torch.autograd.grad(3 * loss, [hidden, *linear.parameters()]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_the_chunked_cross_entropy_in_half_precision_is_near(kind: torch.dtype, tolerance: float):
    """With more words than fp16 has numbers for, fresh weights, and a row that does not count."""
    torch.manual_seed(0)
    linear, hidden = torch.nn.Linear(16, 70_000), torch.randn(12, 16, requires_grad=True)
    labels = torch.randint(70_000, (12,)).index_fill(0, torch.tensor([5]), -100)
    inputs = [hidden, linear.weight, linear.bias]
    plain = torch.nn.functional.cross_entropy(linear(hidden), labels, reduction="sum")
    with torch.autocast("cpu", kind):
        loss, _ = linear_cross_entropy(hidden, linear, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=1e-3, atol=0)
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(plain, inputs), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_gradients_of_fp16_are_not_rounded_to_zero_before_the_loss_scale():
    """All but one of 70,000 tokens have p - y of 1e-9, which fp16 cannot hold."""
    linear, hidden = torch.nn.Linear(1, 70_000), torch.ones(1, 1, requires_grad=True)
    with torch.no_grad():
        linear.weight.fill_(1.0)
        linear.bias.zero_()[0] = 20.0
    label = torch.tensor([0])
    plain = torch.nn.functional.cross_entropy(linear(hidden), label, reduction="sum")
    (expected,) = torch.autograd.grad(plain, linear.weight)
    with torch.autocast("cpu", torch.float16):
        loss, _ = linear_cross_entropy(hidden, linear, label)
    (found,) = torch.autograd.grad(loss, linear.weight)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)


def test_the_loss_of_a_word_without_any_probability_is_finite():
    """A probability of e^-200 is 0 in fp32, its logarithm is not."""
    linear, hidden = torch.nn.Linear(1, 3), torch.tensor([[200.0]], requires_grad=True)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0], [0.0], [-1.0]]))
        linear.bias.zero_()
    loss, right = linear_cross_entropy(hidden, linear, torch.tensor([1]))
    assert loss.item() == pytest.approx(200) and right == 0
    (gradient,) = torch.autograd.grad(loss, [hidden])
    assert gradient.item() == pytest.approx(1)


def test_evaluation_is_the_models_own_loss(wiki: Path, vocabulary: list[str]):
    """Over batches of any size, without dropout."""
    torch.manual_seed(0)
    config = D2LBertConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=24, num_attention_heads=2, hidden_dropout_prob=0.5
    )
    model, pairs = D2LBertForPreTraining(config).train(), masked_pairs(wiki, vocabulary)
    figures = evaluate(model, pairs, 7, Accelerator(cpu=True))
    model.eval()
    mlm, right, nsp = [], [], []
    for row in range(len(pairs)):
        batch = pairs[Piece([row], counted=True)]
        out = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
        logits, words = out.prediction_logits[0, batch["predicted"][0]], batch["labels"][0]
        mlm += torch.nn.functional.cross_entropy(logits, words, reduction="none").tolist()
        right += (logits.argmax(-1) == words).tolist()
        nsp.append(torch.nn.functional.cross_entropy(out.seq_relationship_logits, batch["next_sentence_label"]).item())
    expected = {"mlm_loss": np.mean(mlm), "perplexity": np.exp(np.mean(mlm)), "nsp_loss": np.mean(nsp)}
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert figures["mlm_accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("rows", [[5], [3, 9, 11, 40, 41, 42]])
def test_the_fast_losses_are_the_models(
    attention: str, layers: int, rows: list[int], wiki: Path, vocabulary: list[str]
):
    """Loss, accuracy and all gradients, against `D2LBertForPreTraining` and its logits everywhere."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "initializer_range": 0.3}
    config = D2LBertConfig(vocab_size=len(vocabulary), num_hidden_layers=layers, max_position_embeddings=40, **sizes)
    model = D2LBertForPreTraining(config).double().eval()
    model.set_attn_implementation(attention)
    batch = masked_pairs(wiki, vocabulary)[Piece(rows, counted=True)]
    everywhere = torch.full_like(batch["input_ids"], -100)
    for row, (columns, words) in enumerate(zip(batch["predicted"], batch["labels"], strict=True)):
        everywhere[row, columns[words >= 0]] = words[words >= 0]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    plain = model(**inputs, labels=everywhere, next_sentence_label=batch["next_sentence_label"])
    expected = torch.autograd.grad(plain.loss, list(model.parameters()))
    mlm_loss, nsp_loss, right = FastPreTraining(model)(**batch)
    loss = mlm_loss / (everywhere >= 0).sum() + nsp_loss / len(rows)
    torch.testing.assert_close(loss, plain.loss, rtol=1e-11, atol=1e-11)
    assert right[0] == (plain.prediction_logits.argmax(-1) == everywhere).sum()
    assert right[1] == (plain.seq_relationship_logits.argmax(-1) == batch["next_sentence_label"]).sum()
    for ours, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def options(start: Path | None, data: Path, output_dir: Path, *more: object) -> list[str]:
    words = ["--dataset_name_or_path", data, "--output_dir", output_dir, "--max_length", MAX_LENGTH]
    words += ["--model_name_or_path", start] if start else TINY
    return [str(word) for word in (*words, "--mixed_precision", "no", "--logging_steps", 1, *more)]


PLAIN = (
    *("--max_steps", STEPS, "--train_batch_size", BATCH, "--train_sampling_strategy", "random", "--dropout", 0),
    *("--optim", "adam_torch", "--learning_rate", RATE, "--lr_scheduler_type", "constant", "--warmup_steps", 0),
    *("--weight_decay", 0, "--max_grad_norm", 0, "--seed", 7),
)


@pytest.fixture(scope="module")
def reference_losses(lines: list[str], vocabulary: list[str], wiki: Path, book_weights) -> list[float]:
    """Of the book's model, loss and optimizer, on the book's examples, padded to the full length."""
    net = ReferenceBERT(vocab=len(vocabulary))
    net.load_state_dict(book_weights)
    ids = {word: number for number, word in enumerate(vocabulary)}
    trainer = torch.optim.Adam(net.parameters(), lr=RATE)
    losses: list[float] = []
    epoch = 0
    while len(losses) < STEPS:
        examples = book_examples(lines, vocabulary, wiki, 7, epoch)
        sampler = GlobalBatchSampler([len(example[0]) for example in examples], BATCH, seed=7, strategy="random")
        sampler.set_epoch(epoch)
        for batch in sampler.global_batches()[: STEPS - len(losses)]:
            loss = pretraining_loss(net, [examples[row] for row in batch], ids, MAX_LENGTH)
            trainer.zero_grad()
            loss.backward()
            trainer.step()
            losses.append(float(loss.detach()))
        epoch += 1
    assert epoch > 1
    return losses


def step_losses(output_dir: Path) -> list[float]:
    return [entry["train_loss"] for entry in metrics(output_dir) if "learning_rate" in entry]


@pytest.mark.parametrize("passes", [1, 3])
def test_losses_follow_the_books_loop(
    passes: int, start: Path, wiki: Path, reference_losses: list[float], tmp_path: Path
):
    command = options(start, wiki, tmp_path / "run", *PLAIN, "--gradient_accumulation_steps", passes)
    results = pretrain(parse_recipe(command))
    np.testing.assert_allclose(step_losses(tmp_path / "run"), reference_losses, rtol=1e-5)
    assert results["train_loss"] == pytest.approx(results["train_mlm_loss"] + results["train_nsp_loss"])


@pytest.mark.slow
def test_two_processes_follow_it_as_well(
    start: Path, wiki: Path, reference_losses: list[float], tmp_path: Path, run_python
):
    command = options(start, wiki, tmp_path / "two", *PLAIN, "--gradient_accumulation_steps", 2)
    done = run_python("-m", "bert_snli.cli", "pretrain", "--num_processes", 2, *command)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(step_losses(tmp_path / "two"), reference_losses, rtol=1e-5)
    one = pretrain(parse_recipe(options(start, wiki, tmp_path / "one", *PLAIN)))
    two = json.loads((tmp_path / "two" / "train_results.json").read_text())
    for name in ("eval_mlm_loss", "eval_nsp_loss", "eval_mlm_accuracy", "eval_perplexity"):
        assert two[name] == pytest.approx(one[name], rel=1e-5)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(wiki: Path, tmp_path: Path):
    """Fresh weights, dropout, dynamic masks: killed in the second epoch, resumed, and the same bits in the end."""
    command = options(None, wiki, tmp_path / "whole", "--num_train_epochs", 3, "--train_batch_size", 16)
    pretrain(parse_recipe(command))
    killed = [word.replace("whole", "killed") for word in command] + ["--save_steps", "5"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, "-m", "bert_snli.cli", "pretrain", *killed],
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    begun = time.monotonic()
    while not (tmp_path / "killed" / "checkpoint-15").is_dir():
        assert process.poll() is None and time.monotonic() - begun < 120
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "train_results.json").exists()
    pretrain(parse_recipe([*killed, "--resume_from_checkpoint", "auto"]))
    ours, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert ours.keys() == whole.keys()
    for name in whole:
        assert torch.equal(ours[name], whole[name]), name
    assert step_losses(tmp_path / "killed") == step_losses(tmp_path / "whole")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt a generated corpus's sentences from nothing."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    corpus = write_sample(folder.parent / "corpus", num_pairs={"train": 3000, "dev": 900, "test": 9})
    sizes = "--hidden_size 32 --intermediate_size 64 --num_attention_heads 2 --min_freq 1 --initializer_range 0.2"
    recipe = "--num_train_epochs 10 --train_batch_size 32 --learning_rate 3e-3 --dropout 0 --max_position_embeddings 64"
    words = ["--dataset_name_or_path", str(corpus), "--output_dir", str(folder), "--max_length", "64"]
    words += ["--mixed_precision", "no"]
    pretrain(parse_recipe([*words, *sizes.split(), *recipe.split()]))
    return folder


def test_it_learns(pretrained: Path):
    epochs = [entry for entry in metrics(pretrained) if "eval_loss" in entry]
    # Some 2,000 words are told: a standard error of 0.01. By frequency alone: perplexity 39, accuracy 0.12.
    assert epochs[-1]["eval_perplexity"] < epochs[0]["eval_perplexity"] / 2
    assert epochs[-1]["eval_mlm_accuracy"] > 0.3
    assert (pretrained / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert epochs[-1]["eval_perplexity"] == pytest.approx(np.exp(epochs[-1]["eval_mlm_loss"]))


def test_the_folder_is_a_normal_model(pretrained: Path, corpus: Path):
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    for auto in (AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining):
        model, info = auto.from_pretrained(pretrained, trust_remote_code=True, output_loading_info=True)
        assert not info["missing_keys"] and type(model).__name__.startswith("D2LBert")
    row = json.loads((corpus / "snli_1.0_train.jsonl").read_text().splitlines()[0])
    words = row["sentence1"].split()
    fill = pipeline("fill-mask", model=str(pretrained), tokenizer=tokenizer, trust_remote_code=True)
    guesses = fill(" ".join(["<mask>", *words[1:]]), top_k=3)
    assert words[0].lower() in [guess["token_str"] for guess in guesses]


def test_the_book_can_have_it_and_give_it_back(pretrained: Path, tmp_path: Path):
    assert main(["export", str(pretrained), "--format", "d2l-torch", "--output_dir", str(tmp_path / "book")]) == 0
    command = ["convert", str(tmp_path / "book"), "--output_dir", str(tmp_path / "back"), "--num_attention_heads", "2"]
    assert main(command) == 0
    ours, back = (load_file(folder / "model.safetensors") for folder in (pretrained, tmp_path / "back"))
    assert ours.keys() == back.keys()
    assert all(torch.equal(ours[name], back[name]) for name in ours)


def test_the_chapters_first_form_is_one_chain(wiki: Path, corpus: Path, tmp_path: Path):
    """Pretraining on text, a fresh MLP head, SNLI: with the recipe in the repository, at its size."""
    recipe = ["--config", "recipes/d2l_book_pretrain.yaml", "--dataset_name_or_path", str(wiki), "--max_steps", "2"]
    pretrain(parse_recipe([*recipe, "--output_dir", str(tmp_path / "pretrained")]))
    config = json.loads((tmp_path / "pretrained" / "config.json").read_text())
    assert [config[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")] == [128, 128, 2]
    finetune(
        FinetuneRecipe(
            str(tmp_path / "pretrained"), str(corpus), str(tmp_path / "run"), classifier_head="mlp", max_steps=2
        )
    )
    assert json.loads((tmp_path / "run" / "config.json").read_text())["classifier_head"] == "mlp"


def test_a_vocabulary_is_extended(start: Path, corpus: Path, vocabulary: list[str], tmp_path: Path, capsys):
    """By SNLI's frequent words: the known rows and ids stay what they are, in the embedding and in the head."""
    run = tmp_path / "run"
    more = ("--extend_vocab_from", corpus, "--min_freq", 3, "--max_steps", 1, "--learning_rate", 1e-30)
    results = pretrain(parse_recipe(options(start, corpus, run, *more, "--weight_decay", 0)))
    tokenizer = AutoTokenizer.from_pretrained(run)
    words = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert words[: len(vocabulary)] == vocabulary
    assert results["vocab_size"] == len(words) > len(vocabulary)
    assert f"{len(words)} words, of which {len(words) - len(vocabulary)} new" in capsys.readouterr().out
    before, after = (load_file(folder / "model.safetensors") for folder in (start, run))
    for name in before:
        torch.testing.assert_close(after[name][: len(before[name])], before[name], rtol=0, atol=1e-20)
    for name in ("bert.embeddings.word_embeddings.weight", "lm_head.decoder.weight", "lm_head.decoder.bias"):
        assert len(after[name]) == len(words)
        assert after[name][len(vocabulary) :].isfinite().all() and after[name][len(vocabulary) :].any()
    assert json.loads((run / "config.json").read_text())["vocab_size"] == len(words)
    assert read_steps(run) == [
        f"{len(words) - len(vocabulary):,} words of `{corpus.name}` were added to its vocabulary.",
        f"Pretrained on pairs of sentences of `{corpus.name}`, without labels.",
    ]
    assert main(["export", str(run), "--format", "d2l-torch", "--output_dir", str(tmp_path / "book")]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--hidden_size", 30, "--num_attention_heads", 4], "hidden_size (30) is not a multiple"),
        (["--hidden_size", 0], "--hidden_size 0: give a number above 0"),
        (["--max_length", 600], "--max_length 600: the model takes 512 at most"),
        (["--max_length", 4], "--max_length 4: give 5 or more"),
        (["--dataset_name_or_path", "nowhere/text.txt"], "nowhere/text.txt: no such file or folder"),
        (["--dataset_name_or_path", "someone/text"], "someone/text: cannot be loaded from the hub"),
        (["--extend_vocab_from", "sample"], "--extend_vocab_from: goes with --model_name_or_path"),
        (["--model_name_or_path", "nowhere"], "nowhere: no model folder"),
        (["--num_train_epochs", 0], "--num_train_epochs 0: give 1 or more"),
        (["--initializer_range", "inf"], "--initializer_range inf: give a number"),
        (["--min_freq", 10_000], "--min_freq 10000: no word comes so often"),
        (["--hidden_size", 2**40], "no memory for a model of these sizes"),
        (["--dataset_name_or_path", "a" * 300], "cannot be read (File name too long)"),
        (["--dataset_config_name", "wikitext-2-v1"], "--dataset_config_name wikitext-2-v1: only for the hub"),
        (
            ["--learning_rate", 1e30, "--warmup_steps", 0, "--max_steps", 1, *TINY],
            "the evaluation after step 1 is not finite",
        ),
    ],
)
def test_mistakes_are_one_line(more: list, message: str, wiki: Path, tmp_path: Path, capsys):
    command = ["pretrain", "--dataset_name_or_path", wiki, "--output_dir", tmp_path / "run", *more]
    assert message in error_line(command, capsys)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_sizes_do_not_go_with_a_checkpoint(start: Path, wiki: Path, tmp_path: Path, capsys):
    command = ["pretrain", *options(start, wiki, tmp_path / "run"), "--hidden_size", 16]
    assert f"--hidden_size: {start} has its own" in error_line(command, capsys)


def test_a_classifier_has_no_heads_to_go_on_with(start: Path, wiki: Path, corpus: Path, tmp_path: Path, capsys):
    finetune(FinetuneRecipe(str(start), str(corpus), str(tmp_path / "classifier"), max_length=MAX_LENGTH, max_steps=1))
    command = ["pretrain", *options(tmp_path / "classifier", wiki, tmp_path / "run")]
    assert "lacks lm_head.decoder.bias" in error_line(command, capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no"),
        (b"one line without an end\n" * 3, "too few lines of two sentences"),
        (b"one line . of two\n" * 1, "too few lines of two sentences"),
        (b"one line . of two\n" + b"one line .\n" * 9, "(held-out): too few lines of two sentences"),
        (b"\xff\xfe broken . text \xff . here\n", "save it as UTF-8"),
    ],
)
def test_text_that_is_none(content: bytes, message: str, tmp_path: Path, capsys):
    (tmp_path / "text.txt").write_bytes(content)
    command = ["pretrain", "--dataset_name_or_path", tmp_path / "text.txt", "--output_dir", tmp_path / "run"]
    assert message in error_line(command, capsys)
    assert not (tmp_path / "run").exists()


def test_what_is_told_of_the_data_is_done(corpus: Path, wiki: Path, tmp_path: Path):
    more = (
        "--do_lower_case false --text_source parse --max_train_samples 50 --max_eval_samples 9 --train_batch_tokens 200"
    )
    more += " --preprocessing_num_workers 2 --num_train_epochs 1 --learning_rate 1e-4"
    results = pretrain(parse_recipe(options(None, corpus, tmp_path / "run", *more.split())))
    assert results["train_samples"] == 50 and results["train_steps"] > 3
    words = AutoTokenizer.from_pretrained(tmp_path / "run").get_vocab()
    assert "A" in words and "a" in words


def test_the_best_epoch_is_kept_or_the_last(wiki: Path, tmp_path: Path):
    """By the held-out loss, which a rate that is far too high spoils."""
    losses = {}
    for best in ("true", "false"):
        more = ("--num_train_epochs", 4, "--learning_rate", 0.3, "--load_best_model_at_end", best)
        results = pretrain(parse_recipe(options(None, wiki, tmp_path / best, *more)))
        epochs = [entry["eval_loss"] for entry in metrics(tmp_path / best) if "eval_loss" in entry]
        losses[best] = (results["eval_loss"], epochs)
    assert losses["true"][0] == min(losses["true"][1]) < losses["true"][1][-1]
    assert losses["false"][0] == losses["false"][1][-1]


def test_a_run_is_resumed_with_the_words_it_began_with(wiki: Path, tmp_path: Path, capsys):
    for name in ("wiki.train.tokens", "wiki.valid.tokens"):
        shutil.copy(wiki / name, tmp_path)
    command = options(None, tmp_path, tmp_path / "run", "--max_steps", 4, "--save_steps", 2)
    pretrain(parse_recipe(command))
    again = ["pretrain", *command, "--resume_from_checkpoint", "auto"]
    assert "was made with --hidden_size 16, not 32" in error_line([*again, "--hidden_size", "32"], capsys)
    assert "was made with --do_lower_case None, not False" in error_line([*again, "--do_lower_case", "false"], capsys)
    text = (wiki / "wiki.train.tokens").read_text()
    (tmp_path / "wiki.train.tokens").write_text(text.replace(" dog", " zebra"), encoding="utf-8")
    assert "was made of other pairs, labels or words" in error_line(again, capsys)


def test_resume_is_refused_with_another_evaluation_set(wiki: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    data = tmp_path / "data"
    shutil.copytree(wiki, data)
    command = options(None, data, tmp_path / "run", "--max_steps", 4, "--save_steps", 2)
    pretrain(parse_recipe(command))
    words = "".join(reversed((data / "wiki.valid.tokens").read_text().splitlines(keepends=True)))
    (data / "wiki.valid.tokens").write_text(words, encoding="utf-8")
    again = ["pretrain", *command, "--resume_from_checkpoint", "auto"]
    assert "was made of other pairs, labels or words" in error_line(again, capsys)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("input_ids", [[3, 5, 4, 6, 4], [3, 6, 4, 5, 4]]),
        ("token_type_ids", [[0, 0, 0, 0, 1], [0, 0, 0, 1, 1]]),
        ("length", [4, 6]),
        ("labels", [0, 0]),
    ],
)
def test_fingerprint_depends_on_every_column_of_the_pairs(column: str, values: list):
    tokenizer = build_tokenizer([*SPECIALS, "a", "b"], model_max_length=9)
    columns = {
        "input_ids": [[3, 5, 4, 6, 4], [3, 5, 4, 5, 4]],
        "token_type_ids": [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1]],
        "length": [5, 5],
        "labels": [1, 0],
    }
    known, other = (
        fingerprint(tokenizer, MaskedPairs(pa.table(rows), tokenizer, seed=1).arrays())
        for rows in (columns, {**columns, column: values})
    )
    assert known != other


def test_a_vocabulary_with_rules_of_its_own_is_not_extended(book_weights, vocabulary, wiki, tmp_path: Path, capsys):
    book = save_d2l_checkpoint(tmp_path / "book", book_weights, vocabulary)
    convert(book, tmp_path / "hf", num_attention_heads=2, oov_fallback=True)
    command = ["pretrain", *options(tmp_path / "hf", wiki, tmp_path / "run"), "--extend_vocab_from"]
    assert "has rules of its own" in error_line([*command, wiki], capsys)
    assert "--extend_vocab_from nowhere/text" in error_line([*command, "nowhere/text"], capsys)


def test_a_folder_of_snlis_tables_is_not_taken_for_plain_text(corpus: Path, tmp_path: Path):
    for path in corpus.glob("*.txt"):
        shutil.copy(path, tmp_path)
    splits = open_text(str(tmp_path), None, "raw").splits
    assert set(splits) == {"train", "validation"}
    assert set(splits["train"].column_names) >= {"premise", "hypothesis"}
