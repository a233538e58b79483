"""The book's preparation of text to pretrain on and its loss (d2l 15.9, 15.10), one example and one word at a time.

Written from the book's text and sharing nothing with `bert_snli`; where the book draws with `random`, the draws are
given, so that two implementations can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn


def read_paragraphs(lines: Sequence[str]) -> list[list[list[str]]]:
    """Lines that hold ` . `, as sentences of words; sentences without a word are left out."""
    paragraphs = []
    for line in lines:
        if len(line.split(" . ")) < 2:
            continue
        sentences = [sentence.split() for sentence in line.strip().lower().split(" . ")]
        paragraphs.append([sentence for sentence in sentences if sentence])
    return paragraphs


def sentence_pairs(
    paragraphs: list[list[list[str]]],
    stays: Iterator[float],
    other: Iterator[int],
    place: Iterator[float],
    max_len: int,
) -> Iterator[tuple[list[str], list[int], int]]:
    """Tokens, segments and whether the second sentence is the next, of each pair that is not too long."""
    for paragraph in paragraphs:
        for i in range(len(paragraph) - 1):
            random_paragraph = paragraphs[next(other)]
            random_sentence = random_paragraph[int(next(place) * len(random_paragraph))]
            is_next = next(stays) < 0.5
            first, second = paragraph[i], paragraph[i + 1] if is_next else random_sentence
            if len(first) + len(second) + 3 > max_len:
                continue
            tokens = ["<cls>"] + first + ["<sep>"] + second + ["<sep>"]
            yield tokens, [0] * (len(first) + 2) + [1] * (len(second) + 1), int(is_next)


def mask_tokens(
    tokens: list[str],
    order: Iterator[float],
    masked: Iterator[float],
    kept: Iterator[float],
    word: Iterator[str],
) -> tuple[list[str], list[int], list[str]]:
    """The tokens to read, the positions to predict and the words that were there."""
    numbers = [next(order) for _ in tokens]
    candidates = [i for i, token in enumerate(tokens) if token not in ("<cls>", "<sep>")]
    candidates.sort(key=lambda i: numbers[i])  # a shuffle
    positions = sorted(candidates[: max(1, round(len(tokens) * 0.15))])
    read = list(tokens)
    for position in positions:
        is_masked, is_kept, other = next(masked) < 0.8, next(kept) < 0.5, next(word)
        if is_masked:
            read[position] = "<mask>"
        elif not is_kept:
            read[position] = other
    return read, positions, [tokens[i] for i in positions]


def pretraining_loss(net: nn.Module, examples: Sequence[tuple], ids: dict[str, int], max_len: int) -> torch.Tensor:
    """Mean cross-entropy of the words, by weights as the book's MXNet form has it, and of the next sentences.

    An example is (tokens to read, positions, words, segments, is_next); all are padded to `max_len`.
    """
    most = round(max_len * 0.15)
    tokens, segments, lengths, positions, weights, words, is_next = [], [], [], [], [], [], []
    for read, where, which, segment, follows in examples:
        tokens.append([ids[token] for token in read] + [ids["<pad>"]] * (max_len - len(read)))
        segments.append(segment + [0] * (max_len - len(read)))
        lengths.append(len(read))
        positions.append(where + [0] * (most - len(where)))
        weights.append([1.0] * len(where) + [0.0] * (most - len(where)))
        words.append([ids[word] for word in which] + [0] * (most - len(where)))
        is_next.append(follows)
    _, mlm, nsp = net(*(torch.tensor(column) for column in (tokens, segments, lengths, positions)))
    losses = nn.functional.cross_entropy(mlm.flatten(0, 1), torch.tensor(words).flatten(), reduction="none")
    counted = torch.tensor(weights).flatten()
    return (losses * counted).sum() / counted.sum() + nn.functional.cross_entropy(nsp, torch.tensor(is_next))
