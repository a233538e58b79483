"""Train only those rows of the word embedding that occur in the training data.

Shape suffixes: V vocabulary, R rows that occur in the training data, D hidden size.
"""

import torch
from torch import nn


class EmbeddingRows(nn.Module):
    """The rows `used_R` of a word embedding as a separate parameter; `write_back` copies them into the embedding.

    The result equals training of the whole table. The other rows have no gradient, so AdamW only multiplies all of them
    by one weight-decay factor. This saves most of the gradient and optimizer state of a large vocabulary.
    """

    used_R: torch.Tensor
    row_of_V: torch.Tensor
    decay: torch.Tensor

    def __init__(self, embedding: nn.Embedding, used_R: torch.Tensor):
        super().__init__()
        table_VD = embedding.weight.requires_grad_(False)
        used_R = used_R.to(table_VD.device)
        self.weight = nn.Parameter(table_VD[used_R].clone())
        row_of_V = torch.zeros(len(table_VD), dtype=torch.long, device=used_R.device)
        row_of_V[used_R] = torch.arange(len(used_R), device=used_R.device)
        self.register_buffer("used_R", used_R, persistent=False)
        self.register_buffer("row_of_V", row_of_V, persistent=False)
        # A checkpoint stores this factor, because it stores the table without the decay.
        self.register_buffer("decay", torch.ones((), device=used_R.device))

    def decay_other_rows(self, optimizer: torch.optim.Optimizer, *_) -> None:
        """Multiply `decay` by the weight-decay factor of one step: the post-step hook of AdamW."""
        group = next(group for group in optimizer.param_groups if any(p is self.weight for p in group["params"]))
        factor = 1 - group["lr"] * group["weight_decay"]
        overflowed = getattr(optimizer, "found_inf", None)  # a fused optimizer skips a step with overflow
        self.decay *= factor if overflowed is None else torch.where(overflowed.squeeze() > 0, 1.0, factor)

    @torch.no_grad()
    def write_back(self, embedding: nn.Embedding) -> None:
        """Update the whole table: decay the other rows and copy the trained ones."""
        embedding.weight.mul_(self.decay)
        embedding.weight[self.used_R] = self.weight
        self.decay.fill_(1)
