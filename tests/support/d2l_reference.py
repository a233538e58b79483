"""d2l's BERT in plain PyTorch, written from its equations (d2l 11.3, 11.5, 11.7, 15.7, 15.8). Tests compare with it.

This module shares no code with `bert_snli`. Parameters have d2l's names, `valid_lens` masks scores with −1e6, and the
training step is d2l's (sum of the losses, Adam, constant learning rate).
"""

from __future__ import annotations

import math
import multiprocessing

import torch
from torch import nn


class ReferenceAttention(nn.Module):
    def __init__(self, size: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout)
        for name in ("W_q", "W_k", "W_v", "W_o"):
            setattr(self, name, nn.Linear(size, size))

    def forward(self, X, valid_lens):
        rows, length, size = X.shape

        def split_heads(Y):  # one batch row per head
            Y = Y.reshape(rows, length, self.heads, size // self.heads).permute(0, 2, 1, 3)
            return Y.reshape(rows * self.heads, length, -1)

        queries, keys, values = split_heads(self.W_q(X)), split_heads(self.W_k(X)), split_heads(self.W_v(X))
        scores = torch.bmm(queries, keys.transpose(1, 2)) / math.sqrt(queries.shape[-1])
        if valid_lens is not None:
            lens = torch.repeat_interleave(valid_lens, self.heads)
            is_padding = torch.arange(length)[None, None, :] >= lens[:, None, None]
            scores = scores.masked_fill(is_padding, -1e6)
        self.attention_weights = torch.softmax(scores, dim=-1)
        out = torch.bmm(self.dropout(self.attention_weights), values)
        out = out.reshape(rows, self.heads, length, -1).permute(0, 2, 1, 3).reshape(rows, length, size)
        return self.W_o(out)


class ReferenceAddNorm(nn.Module):
    def __init__(self, size: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.ln = nn.LayerNorm(size)

    def forward(self, X, Y):
        return self.ln(self.dropout(Y) + X)


class ReferenceFFN(nn.Module):
    def __init__(self, size: int, inner: int):
        super().__init__()
        self.dense1, self.dense2 = nn.Linear(size, inner), nn.Linear(inner, size)

    def forward(self, X):
        return self.dense2(torch.relu(self.dense1(X)))


class ReferenceBlock(nn.Module):
    def __init__(self, size: int, inner: int, heads: int, dropout: float):
        super().__init__()
        self.attention = ReferenceAttention(size, heads, dropout)
        self.addnorm1, self.addnorm2 = ReferenceAddNorm(size, dropout), ReferenceAddNorm(size, dropout)
        self.ffn = ReferenceFFN(size, inner)

    def forward(self, X, valid_lens):
        Y = self.addnorm1(X, self.attention(X, valid_lens))
        return self.addnorm2(Y, self.ffn(Y))


class ReferenceEncoder(nn.Module):
    def __init__(self, vocab: int, size: int, inner: int, heads: int, layers: int, dropout: float, max_len: int):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, size)
        self.segment_embedding = nn.Embedding(2, size)
        self.pos_embedding = nn.Parameter(torch.randn(1, max_len, size))
        self.blks = nn.ModuleList(ReferenceBlock(size, inner, heads, dropout) for _ in range(layers))

    def forward(self, tokens, segments, valid_lens):
        X = self.token_embedding(tokens) + self.segment_embedding(segments)
        X = X + self.pos_embedding[:, : X.shape[1]]
        for block in self.blks:
            X = block(X, valid_lens)
        return X


class ReferenceMaskLM(nn.Module):
    def __init__(self, vocab: int, size: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.LayerNorm(size), nn.Linear(size, vocab))

    def forward(self, X, pred_positions):
        rows = torch.arange(X.shape[0])[:, None]
        return self.mlp(X[rows, pred_positions])


class ReferenceNextSentence(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.output = nn.Linear(size, 2)

    def forward(self, X):
        return self.output(X)


class ReferenceBERT(nn.Module):
    """The pretraining model: d2l saves its `state_dict()` as `pretrained.params`."""

    def __init__(self, vocab=50, size=16, inner=24, heads=2, layers=2, dropout=0.0, max_len=40):
        super().__init__()
        self.encoder = ReferenceEncoder(vocab, size, inner, heads, layers, dropout, max_len)
        self.hidden = nn.Sequential(nn.Linear(size, size), nn.Tanh())
        self.mlm = ReferenceMaskLM(vocab, size)
        self.nsp = ReferenceNextSentence(size)

    def forward(self, tokens, segments, valid_lens=None, pred_positions=None):
        encoded = self.encoder(tokens, segments, valid_lens)
        mlm = None if pred_positions is None else self.mlm(encoded, pred_positions)
        return encoded, mlm, self.nsp(self.hidden(encoded[:, 0]))


class ReferenceClassifier(nn.Module):
    """The classifier of section 15.7: the pretrained encoder and `hidden`, and a new output layer."""

    def __init__(self, bert: ReferenceBERT, num_labels: int = 3):
        super().__init__()
        self.encoder, self.hidden = bert.encoder, bert.hidden
        self.output = nn.Linear(self.hidden[0].out_features, num_labels)

    def forward(self, tokens, segments, valid_lens):
        return self.output(self.hidden(self.encoder(tokens, segments, valid_lens)[:, 0]))


def train_step(net: nn.Module, inputs, labels, trainer: torch.optim.Optimizer) -> float:
    """Train on one batch as d2l does. Return the mean loss of the rows."""
    net.train()
    losses = nn.functional.cross_entropy(net(*inputs), labels, reduction="none")
    trainer.zero_grad()
    losses.sum().backward()
    trainer.step()
    return float(losses.detach().sum()) / len(labels)


def encode_pair(premise: list[str], hypothesis: list[str], vocab: dict[str, int], max_len: int):
    """Encode one pair as d2l does. Return ids and segments, both padded to `max_len`, and the valid length."""
    premise, hypothesis = list(premise), list(hypothesis)
    while len(premise) + len(hypothesis) > max_len - 3:
        (premise if len(premise) > len(hypothesis) else hypothesis).pop()
    tokens = ["<cls>", *premise, "<sep>", *hypothesis, "<sep>"]
    segments = [0] * (len(premise) + 2) + [1] * (len(hypothesis) + 1)
    ids = [vocab.get(token, vocab["<unk>"]) for token in tokens]
    padding = max_len - len(ids)
    return ids + [vocab["<pad>"]] * padding, segments + [0] * padding, len(ids)


class ReferencePairs:
    """d2l's dataset class for SNLI (d2l 15.7.2): 4 processes encode all pairs, padded, into tensors."""

    def __init__(
        self, premises: list[str], hypotheses: list[str], labels: list[int], vocab: dict[str, int], max_len: int
    ):
        self.vocab, self.max_len = vocab, max_len
        pairs = [
            (premise.lower().split(), hypothesis.lower().split())
            for premise, hypothesis in zip(premises, hypotheses, strict=True)
        ]
        with multiprocessing.Pool(4) as pool:
            encoded = pool.map(self.encode, pairs)
        self.labels = torch.tensor(labels)
        self.ids = torch.tensor([ids for ids, _, _ in encoded])
        self.segments = torch.tensor([segments for _, segments, _ in encoded])
        self.valid_lens = torch.tensor([length for _, _, length in encoded])

    def encode(self, pair: tuple[list[str], list[str]]):
        return encode_pair(*pair, self.vocab, self.max_len)
