"""Word embeddings of which only the rows that occur in the training data are trained: the others get no gradient."""

from __future__ import annotations

import torch
from torch import nn

# Shape suffixes: V words of the vocabulary, R of them in use, D hidden size.


class EmbeddingRows(nn.Module):
    """The rows `used_R` of a word embedding as a parameter of their own; `write_back` puts them into the embedding.

    With a vocabulary of 60,005 words, of which SNLI's captions use a fraction, a dense gradient and its optimizer
    states are mostly zeros that are written and read in every step. The result is that of training the whole table:
    a row without a gradient is moved by weight decay alone, which is one factor for all of them.
    """

    used_R: torch.Tensor
    places_V: torch.Tensor
    decay: torch.Tensor

    def __init__(self, embedding: nn.Embedding, used_R: torch.Tensor):
        super().__init__()
        table_VD = embedding.weight.requires_grad_(False)
        used_R = used_R.to(table_VD.device)
        self.weight = nn.Parameter(table_VD[used_R].clone())
        places_V = torch.zeros(len(table_VD), dtype=torch.long, device=used_R.device)
        places_V[used_R] = torch.arange(len(used_R), device=used_R.device)
        self.register_buffer("used_R", used_R, persistent=False)
        self.register_buffer("places_V", places_V, persistent=False)
        # A checkpoint stores this factor, because the table in it has not decayed yet.
        self.register_buffer("decay", torch.ones((), device=used_R.device))

    def decay_others(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the weight decay of one step: to be called after each step of AdamW."""
        group = next(group for group in optimizer.param_groups if any(p is self.weight for p in group["params"]))
        factor = 1 - group["lr"] * group["weight_decay"]
        overflowed = getattr(optimizer, "found_inf", None)  # a fused optimizer under a GradScaler skips such a step
        self.decay *= factor if overflowed is None else torch.where(overflowed.squeeze() > 0, 1.0, factor)

    @torch.no_grad()
    def write_back(self, embedding: nn.Embedding) -> None:
        """Bring the whole table up to date."""
        embedding.weight.mul_(self.decay)
        embedding.weight[self.used_R] = self.weight
        self.decay.fill_(1)
