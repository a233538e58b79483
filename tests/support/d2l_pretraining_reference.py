"""d2l's preparation of text to pretrain on and its loss (d2l 15.9, 15.10), one example and one token at a time.

Written from the text of the book, without code of `bert_snli`. Where d2l draws random numbers, the caller passes them,
so that two implementations can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn


def read_paragraphs(lines: Sequence[str]) -> list[list[list[str]]]:
    """Split the lines that contain ` . ` into sentences of tokens, without empty sentences."""
    paragraphs = []
    for line in lines:
        if len(line.split(" . ")) < 2:
            continue
        sentences = [sentence.split() for sentence in line.strip().lower().split(" . ")]
        paragraphs.append([sentence for sentence in sentences if sentence])
    return paragraphs


def sentence_pairs(
    paragraphs: list[list[list[str]]],
    next_draws: Iterator[float],
    paragraph_draws: Iterator[int],
    sentence_draws: Iterator[float],
    max_len: int,
) -> Iterator[tuple[list[str], list[int], int]]:
    """Yield tokens, segments and is_next of each sentence pair that is not too long."""
    for paragraph in paragraphs:
        for i in range(len(paragraph) - 1):
            random_paragraph = paragraphs[next(paragraph_draws)]
            random_sentence = random_paragraph[int(next(sentence_draws) * len(random_paragraph))]
            is_next = next(next_draws) < 0.5
            first, second = paragraph[i], paragraph[i + 1] if is_next else random_sentence
            if len(first) + len(second) + 3 > max_len:
                continue
            tokens = ["<cls>"] + first + ["<sep>"] + second + ["<sep>"]
            yield tokens, [0] * (len(first) + 2) + [1] * (len(second) + 1), int(is_next)


def mask_tokens(
    tokens: list[str],
    order_draws: Iterator[float],
    mask_draws: Iterator[float],
    keep_draws: Iterator[float],
    token_draws: Iterator[str],
) -> tuple[list[str], list[int], list[str]]:
    """Return the input tokens, the positions to predict and the original tokens there."""
    numbers = [next(order_draws) for _ in tokens]
    candidates = [i for i, token in enumerate(tokens) if token not in ("<cls>", "<sep>")]
    candidates.sort(key=lambda i: numbers[i])  # a shuffle
    positions = sorted(candidates[: max(1, round(len(tokens) * 0.15))])
    inputs = list(tokens)
    for position in positions:
        is_masked, is_kept, random_token = next(mask_draws) < 0.8, next(keep_draws) < 0.5, next(token_draws)
        if is_masked:
            inputs[position] = "<mask>"
        elif not is_kept:
            inputs[position] = random_token
    return inputs, positions, [tokens[i] for i in positions]


def pretraining_loss(net: nn.Module, examples: Sequence[tuple], ids: dict[str, int], max_len: int) -> torch.Tensor:
    """Return the mean cross-entropy of the masked tokens, weighted as in d2l's MXNet version, plus that of is_next.

    An example is (input tokens, positions, labels, segments, is_next); all are padded to `max_len`.
    """
    most = round(max_len * 0.15)
    tokens, segments, lengths, positions, weights, words, is_next = [], [], [], [], [], [], []
    for inputs, where, which, segment, follows in examples:
        tokens.append([ids[token] for token in inputs] + [ids["<pad>"]] * (max_len - len(inputs)))
        segments.append(segment + [0] * (max_len - len(inputs)))
        lengths.append(len(inputs))
        positions.append(where + [0] * (most - len(where)))
        weights.append([1.0] * len(where) + [0.0] * (most - len(where)))
        words.append([ids[word] for word in which] + [0] * (most - len(where)))
        is_next.append(follows)
    _, mlm, nsp = net(*(torch.tensor(column) for column in (tokens, segments, lengths, positions)))
    token_losses = nn.functional.cross_entropy(mlm.flatten(0, 1), torch.tensor(words).flatten(), reduction="none")
    counted = torch.tensor(weights).flatten()
    return (token_losses * counted).sum() / counted.sum() + nn.functional.cross_entropy(nsp, torch.tensor(is_next))
