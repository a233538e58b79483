"""A small text to pretrain on, and its examples as `bert_snli` and as d2l prepare them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bert_snli.data.pretraining import MaskedPairs, count_masked, draw_masks, draw_pairs, encode_corpus, pair_up
from bert_snli.data.text import Paragraphs, open_text, split_sentences
from bert_snli.tokenization import build_tokenizer
from tests.support.checkpoints import SPECIALS
from tests.support.d2l_pretraining_reference import mask_tokens, read_paragraphs, sentence_pairs

MAX_LENGTH = 40


def make_wiki_lines(corpus: Path) -> list[str]:
    """Make paragraphs of the premises of `corpus`, tokenized as WikiText is, and lines that are not paragraphs."""
    rows = [json.loads(row) for row in (corpus / "snli_1.0_train.jsonl").read_text().splitlines()]
    sentences = [row["sentence1"].rstrip(".") for row in rows]
    random = np.random.default_rng(0)
    paragraphs, begin = [], 0
    while begin < len(sentences):
        size = int(random.integers(1, 7))
        paragraphs.append(" " + " . ".join(sentences[begin : begin + size]) + " . \n")
        begin += size
    return [" = Heading = \n", " \n", *paragraphs, " A sentence alone . \n"]


def write_wiki(lines: list[str], folder: Path) -> Path:
    """Write `lines` as the files of WikiText-2, without its test split."""
    (folder / "wiki.train.tokens").write_text("".join(lines), encoding="utf-8")
    (folder / "wiki.valid.tokens").write_text("".join(lines[::-3]), encoding="utf-8")
    return folder


def split_paragraphs(source: Path) -> Paragraphs:
    """Read raw text and split its paragraphs into sentences."""
    return split_sentences(open_text(str(source), None, "raw"), build_tokenizer(SPECIALS, model_max_length=9))


def masked_pairs(wiki: Path, vocabulary: list[str], seed: int = 7, **options) -> MaskedPairs:
    """Return the masked sentence pairs of the train split of `wiki`."""
    tokenizer = build_tokenizer(vocabulary, model_max_length=MAX_LENGTH)
    corpus = encode_corpus(split_paragraphs(wiki).train, tokenizer)
    pairs = pair_up(corpus, draw_pairs(corpus, seed), tokenizer, MAX_LENGTH)
    return MaskedPairs(pairs, tokenizer, seed=seed, **options)


def d2l_examples(lines: list[str], vocabulary: list[str], wiki: Path, seed: int, epoch: int) -> list[tuple]:
    """Return d2l's examples for the random draws of `seed`: (input tokens, positions, labels, segments, is_next)."""
    tokenizer = build_tokenizer(vocabulary, model_max_length=MAX_LENGTH)
    draws = draw_pairs(encode_corpus(split_paragraphs(wiki).train, tokenizer), seed)
    pairs = list(sentence_pairs(read_paragraphs(lines), *map(iter, draws), MAX_LENGTH))
    lengths = np.array([len(tokens) for tokens, _, _ in pairs])
    masks = draw_masks(int(lengths.sum()), int(count_masked(lengths).sum()), len(vocabulary), seed, epoch)
    order, masked, kept = (iter(draw.tolist()) for draw in masks[:3])
    words = (vocabulary[word] for word in masks[3])
    return [
        (*mask_tokens(tokens, order, masked, kept, words), segments, is_next) for tokens, segments, is_next in pairs
    ]
