"""The preparation of text to pretrain on, against d2l 15.9."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from bert_snli.data.batching import MicroBatch
from bert_snli.data.pair_encoding import flat_columns
from bert_snli.data.pretraining import (
    MaskedPairs,
    encode_corpus,
    mask_tokens,
    pair_up,
)
from bert_snli.data.text import build_vocabulary, open_text
from bert_snli.errors import BertSnliError
from bert_snli.tokenization import build_tokenizer
from bert_snli.training.setup import fingerprint
from tests.support.checkpoints import SPECIALS
from tests.support.d2l_pretraining_reference import read_paragraphs
from tests.support.pretraining import d2l_examples, masked_pairs, split_paragraphs
from tests.support.snli_tables import write_tables


@pytest.mark.parametrize("epoch", [0, 1])
def test_examples_equal_those_of_d2l_for_the_same_random_draws(
    wiki_lines: list[str], wiki_vocabulary: list[str], wiki: Path, epoch: int
):
    pairs = masked_pairs(wiki, wiki_vocabulary)
    pairs.set_epoch(epoch)
    examples = d2l_examples(wiki_lines, wiki_vocabulary, wiki, 7, epoch)
    assert len(pairs) == len(examples) > 150
    for row, (read, positions, words, segments, is_next) in enumerate(examples):
        batch = pairs[MicroBatch([row], has_labels=True)]
        assert [wiki_vocabulary[i] for i in batch["input_ids"][0]] == read
        assert batch["token_type_ids"][0].tolist() == segments
        assert batch["predicted"][0].tolist() == positions
        assert [wiki_vocabulary[i] for i in batch["labels"][0]] == words
        assert batch["next_sentence_label"].item() == is_next
    assert 0.35 < np.mean([is_next for *_, is_next in examples]) < 0.65


def test_pair_up_pairs_each_sentence_with_the_next_or_the_drawn_one():
    tokenizer = build_tokenizer([*SPECIALS, *"abcde"], model_max_length=16)
    paragraphs = Dataset.from_dict({"sentences": [["a", "b", "c a"], ["d", "e"]]})
    corpus = encode_corpus(paragraphs, tokenizer)
    # Candidates: a, b and d. The second one is paired with sentence floor(0.9 * 3) of the first paragraph.
    draws = (np.array([0.4, 0.5, 0.1]), np.array([1, 0, 0]), np.array([0.0, 0.9, 0.0]))
    pairs = pair_up(corpus, draws, tokenizer, 6).to_pydict()
    tokens = [" ".join(tokenizer.convert_ids_to_tokens(ids)) for ids in pairs["input_ids"]]
    assert tokens == ["<cls> a <sep> b <sep>", "<cls> b <sep> c a <sep>", "<cls> d <sep> e <sep>"]
    assert pairs["labels"] == [1, 0, 1]
    assert pair_up(corpus, draws, tokenizer, 5)["labels"].to_pylist() == [1, 1]
    with pytest.raises(BertSnliError, match="^max_length 4: all pairs of sentences are longer"):
        pair_up(corpus, draws, tokenizer, 4)


def test_mask_tokens_predicts_the_first_tokens_in_order_without_excluded_ones():
    """Rows of 5 and 12 tokens have 1 and 2 predicted tokens. `<cls>` and `<sep>` have the smallest numbers."""
    cls, sep, mask = 3, 4, 2
    ids, lengths = np.array([cls, 10, sep, 11, sep, cls, *range(20, 30), sep]), np.array([5, 12])
    order = np.array([0.0, 0.6, 0.1, 0.5, 0.2, 0.0, *np.linspace(0.9, 0.1, 10), 0.0])
    draws = (order, np.array([0.9, 0.7, 0.8]), np.array([0.5, 0.0, 0.4]), np.array([40, 41, 42]))
    masked, columns, labels = mask_tokens(ids, lengths, draws, mask, (cls, sep))
    assert columns.tolist() == [3, 9, 10]
    assert labels.tolist() == [11, 28, 29]
    # The first token is replaced by the drawn one, the second one is masked, and the third one stays.
    assert [masked[i] for i in (3, 14, 15)] == [40, mask, 29]
    assert np.flatnonzero(masked != ids).tolist() == [3, 14]


def test_shares_of_masked_unchanged_and_replaced_tokens_are_those_of_d2l(wiki: Path, wiki_vocabulary: list[str]):
    pairs = masked_pairs(wiki, wiki_vocabulary)
    counts: Counter[str] = Counter()
    for epoch in range(40):
        pairs.set_epoch(epoch)
        for row in range(len(pairs)):
            batch = pairs[MicroBatch([row], has_labels=True)]
            for column, label in zip(batch["predicted"][0].tolist(), batch["labels"][0].tolist(), strict=True):
                read = batch["input_ids"][0, column].item()
                counts["mask" if wiki_vocabulary[read] == "<mask>" else "unchanged" if read == label else "other"] += 1
    total = sum(counts.values())
    # A random token may also be the token itself or <mask>.
    assert counts["mask"] / total == pytest.approx(0.8, abs=0.01)
    assert counts["unchanged"] / total == pytest.approx(0.1, abs=0.01)
    assert total / 40 / pairs.lengths.sum() == pytest.approx(0.15, abs=0.02)


def test_masks_change_with_each_epoch_unless_static(wiki: Path, wiki_vocabulary: list[str]):
    def ids(pairs: MaskedPairs, epoch: int) -> list[int]:
        pairs.set_epoch(epoch)
        return pairs.tokens["input_ids"].tolist()

    dynamic, static = masked_pairs(wiki, wiki_vocabulary), masked_pairs(wiki, wiki_vocabulary, static_masks=True)
    assert ids(dynamic, 1) != ids(dynamic, 2) != ids(dynamic, 3)
    assert (
        ids(dynamic, 2) == ids(masked_pairs(wiki, wiki_vocabulary), 2) != ids(masked_pairs(wiki, wiki_vocabulary, 8), 2)
    )
    assert ids(static, 1) == ids(static, 2) == ids(dynamic, 0)


def test_labels_of_a_padding_row_are_ignored(wiki: Path, wiki_vocabulary: list[str]):
    batch = masked_pairs(wiki, wiki_vocabulary)[MicroBatch([3], has_labels=False)]
    assert set(batch["labels"].flatten().tolist()) == set(batch["next_sentence_label"].tolist()) == {-100}


def test_vocabulary_holds_the_tokens_that_d2l_counts(wiki_lines: list[str], wiki: Path):
    counts = Counter(word for paragraph in read_paragraphs(wiki_lines) for sentence in paragraph for word in sentence)
    words = build_vocabulary(split_paragraphs(wiki).train, 5)
    assert words[:5] == SPECIALS
    assert set(words[5:]) == {word for word, count in counts.items() if count >= 5} - set(SPECIALS)
    assert words[5:] == sorted(words[5:], key=lambda word: (-counts[word], word))  # the same in every process


def test_special_tokens_in_a_text_do_not_change_the_order_of_the_vocabulary():
    """WikiText's text contains `<unk>`."""
    paragraphs = Dataset.from_dict({"sentences": [["b <unk> a", "<unk> b c"]]})
    assert build_vocabulary(paragraphs, 1) == [*SPECIALS, "b", "a", "c"]
    with pytest.raises(BertSnliError, match="^min_freq 3: no token occurs that often"):
        build_vocabulary(paragraphs, 3)


def test_raw_text_is_tokenized_and_split_into_sentences(wiki: Path, tmp_path: Path):
    raw = 'He can\'t go. She (Ann) can! I "know" it.\nOne sentence.\n\nMr. Smith left. So did we.\n\n\n'
    (tmp_path / "text.txt").write_text(raw, encoding="utf-8")
    split = split_paragraphs(tmp_path / "text.txt")
    assert split.eval_split == "held-out"
    assert list(split.train["sentences"]) == [
        ["he ca n't go", "she -lrb- ann -rrb- can ! i `` know '' it ."],
        ["one sentence ."],  # as in d2l: its sentence can only be the second one of a pair
    ]
    assert list(split.evaluation["sentences"]) == [["mr. smith left", "so did we ."]]


def test_text_files_of_a_folder_are_joined_without_hidden_files(tmp_path: Path):
    for name in ("b.txt", "a.txt", ".c.txt", "d.csv"):
        (tmp_path / name).write_text(f"{name} is here. And there is more.\n" * 30, encoding="utf-8")
    split = split_paragraphs(tmp_path)
    assert (len(split.train), len(split.evaluation)) == (57, 3)
    assert split.train[0]["sentences"][0] == "a.txt is here"
    assert split.evaluation[0]["sentences"][0] == "b.txt is here"


def test_text_files_with_names_of_splits_are_splits(tmp_path: Path):
    for name in ("test.txt", "train.txt", "dev.txt"):
        (tmp_path / name).write_text(f"{name} is here. And there is more.\n" * 30, encoding="utf-8")
    split = split_paragraphs(tmp_path)
    assert split.eval_split == "validation"
    assert (len(split.train), len(split.evaluation)) == (30, 30)
    assert split.train[0]["sentences"][0] == "train.txt is here"
    assert split.evaluation[0]["sentences"][0] == "dev.txt is here"


def test_readme_and_license_in_a_folder_of_text_are_not_read(tmp_path: Path):
    for name in ("README.md", "license.txt", "train.txt", "valid.txt"):
        (tmp_path / name).write_text(f"{name} is here. And there is more.\n" * 3, encoding="utf-8")
    splits = open_text(str(tmp_path), None, "raw").splits
    assert {split: rows[0]["text"].split()[0] for split, rows in splits.items()} == {
        "train": "train.txt",
        "validation": "valid.txt",
    }
    (tmp_path / "train.txt").unlink()
    (tmp_path / "valid.txt").rename(tmp_path / "text.txt")
    assert len(open_text(str(tmp_path), None, "raw").splits["train"]) == 3
    assert len(open_text(str(tmp_path / "README.md"), None, "raw").splits["train"]) == 3  # named by the user


def test_readme_next_to_snli_is_not_read_as_text(corpus: Path, tmp_path: Path):
    for path in corpus.glob("*.jsonl"):
        shutil.copy(path, tmp_path)
    (tmp_path / "README.txt").write_text("SNLI is here. And there is more.\n", encoding="utf-8")
    assert "premise" in open_text(str(tmp_path), None, "raw").splits["train"].column_names


@pytest.mark.parametrize(("split", "column"), [("validation", "text"), ("train", "sentence")])
def test_dataset_without_a_train_split_or_text_is_refused(split: str, column: str, monkeypatch: pytest.MonkeyPatch):
    dataset = DatasetDict({split: Dataset.from_dict({column: ["A dog runs. It sleeps."]})})
    monkeypatch.setattr("bert_snli.data.sources.load_dataset", lambda *arguments, **options: dataset)
    with pytest.raises(BertSnliError, match="has no split 'train' or no column 'text'"):
        open_text("someone/stories", None, "raw")


def test_special_tokens_in_a_text_become_unknown_tokens(wiki_vocabulary: list[str]):
    tokenizer = build_tokenizer(wiki_vocabulary, model_max_length=9)
    paragraphs = Dataset.from_dict({"sentences": [["<cls> <sep> <mask>", "<pad> <unk> nowhere"]]})
    sentences, counts = encode_corpus(paragraphs, tokenizer)
    assert (sentences.ids.tolist(), sentences.lengths.tolist()) == ([tokenizer.unk_token_id] * 6, [3, 3])
    assert counts.tolist() == [2]


def test_wikitext_of_the_hub_is_tokenized_and_other_datasets_are_raw(monkeypatch: pytest.MonkeyPatch):
    requests = []

    def load(name, config, split):
        requests.append((name, config))
        return DatasetDict({"train": Dataset.from_dict({"text": ["He can't. She can."] * 3})})

    monkeypatch.setattr("bert_snli.data.sources.load_dataset", load)
    for name, config, tokenized in (
        ("Salesforce/wikitext", None, True),
        ("Salesforce/wikitext", "wikitext-2-raw-v1", False),
        ("someone/stories-1.0", None, False),
    ):
        assert open_text(name, config, "raw").tokenized is tokenized
    assert requests == [
        ("Salesforce/wikitext", "wikitext-2-v1"),
        ("Salesforce/wikitext", "wikitext-2-raw-v1"),
        ("someone/stories-1.0", None),
    ]


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
    first, second = (
        fingerprint(tokenizer, flat_columns(MaskedPairs(pa.table(rows), tokenizer, seed=1).pairs))
        for rows in (columns, {**columns, column: values})
    )
    assert first != second


def test_tables_of_snli_are_not_read_as_plain_text(corpus: Path, tmp_path: Path):
    splits = open_text(str(write_tables(corpus, tmp_path)), None, "raw").splits
    assert set(splits) == {"train", "validation"}
    assert set(splits["train"].column_names) >= {"premise", "hypothesis"}
