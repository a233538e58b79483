"""Compute logits and losses with fewer matrix products. The results are equal up to floating-point rounding.

Computation that does not affect the output is skipped, and repeated computation is done once:

- The last block is computed only at `<cls>`, which the pooler reads, and at the masked positions, and the keys and
  values of the other positions are not projected (`attention.attend_from`). The matching head reads all positions, so
  it needs the whole block.
- On a CPU, the first block projects each distinct token of a batch once (`attention.embed_and_project`), and a batch
  without padding has no mask.

Results depend only on the weights and the batch. No state is stored between calls, so several threads may call one
module. All inputs of a call must be on the device of the weights.

`modeling/` computes all outputs that `transformers` expects. The tests compare both implementations.

Shape suffixes: B rows, L positions, D hidden size, V vocabulary, G segments, C labels, Q masked positions in a row,
P masked positions in all rows.
"""

from typing import cast

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.modeling_outputs import SequenceClassifierOutput

from bert_snli.fast.attention import attend, attend_from, embed_and_project, project
from bert_snli.fast.dropout import dropout
from bert_snli.fast.embedding_rows import EmbeddingRows
from bert_snli.modeling import D2LBertForPreTraining, D2LBertForSequenceClassification
from bert_snli.modeling.layers_d2l_bert import D2LBertLayer

MIN_ROWS_TO_SHARE = 4  # smaller batches have too few repeated tokens


def supports_fast_forward(model: D2LBertForSequenceClassification) -> bool:
    """Return whether the layers whose weights are read are plain: no adapters (peft), no int8 weights (torchao)."""
    parts = [model.bert.embeddings, *(cast(D2LBertLayer, block).attention for block in model.bert.encoder.layer)]
    layers = [layer for part in parts for layer in part.children()]
    return all(type(layer) in (nn.Embedding, nn.Linear) for layer in layers) and not any(
        is_traceable_wrapper_subclass(layer.weight) for layer in layers
    )


class FastEncoder(nn.Module):
    """Base class of `FastClassifier` and `FastPreTraining`. It computes the blocks with the weights of `model`."""

    def __init__(self, model: D2LBertForSequenceClassification | D2LBertForPreTraining):
        super().__init__()
        self.model = model
        self.embedding_rows: EmbeddingRows | None = None
        self.config = model.config

    @property
    def last_block(self) -> D2LBertLayer:
        """Return the last block."""
        return cast(D2LBertLayer, self.model.bert.encoder.layer[-1])

    def before_last_block(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute the input of the last block (B, L, D) and its mask (B, 1, 1, L), true at tokens."""
        embeddings = self.model.bert.embeddings
        positions_LD, length = embeddings.position_embeddings.weight, input_ids.shape[1]
        if length > (limit := len(positions_LD)):
            raise ValueError(f"input: has {length} positions, but the model has {limit}; truncate the input")
        words_VD = embeddings.word_embeddings.weight
        if self.embedding_rows is not None:
            input_ids, words_VD = self.embedding_rows.row_of_V[input_ids], self.embedding_rows.weight
        tables = words_VD, embeddings.token_type_embeddings.weight, positions_LD[:length]
        blocks = cast("list[D2LBertLayer]", list(self.model.bert.encoder.layer)[:-1])
        projections = None
        if blocks and len(input_ids) >= MIN_ROWS_TO_SHARE and _can_read_values(input_ids):
            hidden_BLD, projections = embed_and_project(input_ids, token_type_ids, *tables, blocks[0].attention)
        else:
            hidden_BLD = _embed(input_ids, token_type_ids, *tables)
        is_full = _can_read_values(attention_mask) and bool(attention_mask.all())
        mask_B11L = None if is_full else attention_mask[:, None, None].bool()
        for block in blocks:
            projections = projections or project(block.attention, hidden_BLD)
            hidden_BLD = _finish_block(block, attend(block.attention, projections, mask_B11L), hidden_BLD)
            projections = None
        return hidden_BLD, mask_B11L

    def last_block_at(
        self, selected_BQD: torch.Tensor, hidden_BLD: torch.Tensor, mask_B11L: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute the last block only at the selected positions of its input `hidden_BLD`."""
        values_BQD = attend_from(self.last_block.attention, selected_BQD, hidden_BLD, mask_B11L)
        return _finish_block(self.last_block, values_BQD, selected_BQD)


class FastClassifier(FastEncoder):
    """Computes the logits of a `D2LBertForSequenceClassification`."""

    model: D2LBertForSequenceClassification

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> SequenceClassifierOutput:
        """Compute `logits` (B, C). All arguments are (B, L)."""
        hidden_BLD, mask_B11L = self.before_last_block(input_ids, attention_mask, token_type_ids)
        pooler, classifier = self.model.bert.pooler, self.model.classifier
        if self.config.classifier_head == "matching":
            attention = self.last_block.attention
            values_BLD = attend(attention, project(attention, hidden_BLD), mask_B11L)
            last_BLD = _finish_block(self.last_block, values_BLD, hidden_BLD)
            logits_BC = classifier(cast(nn.Module, pooler)(last_BLD), last_BLD, attention_mask, token_type_ids)
        else:
            last_B1D = self.last_block_at(hidden_BLD[:, :1], hidden_BLD, mask_B11L)
            logits_BC = classifier(last_B1D[:, 0] if pooler is None else pooler(last_B1D))
        return SequenceClassifierOutput(logits=logits_BC)

    def train_rows(self, used_R: torch.Tensor) -> None:
        """Train only the rows `used_R` of the word embedding. These must include all tokens in the training data."""
        self.embedding_rows = EmbeddingRows(self.model.bert.embeddings.word_embeddings, used_R)

    def decay_untrained_rows(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply the weight decay of each step of `optimizer` to the rows that are not trained."""
        if self.embedding_rows is not None:
            optimizer.register_step_post_hook(self.embedding_rows.decay_other_rows)

    def write_back(self) -> None:
        """Copy the trained rows into the model's word embedding."""
        if self.embedding_rows is not None:
            self.embedding_rows.write_back(self.model.bert.embeddings.word_embeddings)


class FastPreTraining(FastEncoder):
    """Computes the losses of a `D2LBertForPreTraining`."""

    model: D2LBertForPreTraining

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        predicted: torch.Tensor,
        labels: torch.Tensor,
        next_sentence_label: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the summed MLM loss, the summed NSP loss, and the numbers of correct predictions for both (2,).

        The first three arguments are (B, L). `predicted` (B, Q) are the masked positions, and `labels` (B, Q) the ids
        of their tokens, −100 where a row has fewer masked positions. `next_sentence_label` (B,) is 1 if the second
        sentence is the next one, −100 to ignore the row.
        """
        hidden_BLD, mask_B11L = self.before_last_block(input_ids, attention_mask, token_type_ids)
        positions_BQ = torch.cat([torch.zeros_like(predicted[:, :1]), predicted], dim=1)  # `<cls>` first
        batch, length, _ = hidden_BLD.shape
        row_starts_B1 = torch.arange(0, batch * length, length, device=positions_BQ.device)[:, None]
        selected_BQD = nn.functional.embedding(row_starts_B1 + positions_BQ, hidden_BLD.flatten(0, 1))
        last_BQD = self.last_block_at(selected_BQD, hidden_BLD, mask_B11L)

        relationship_B2 = self.model.nsp_head(cast(nn.Module, self.model.bert.pooler)(last_BQD))
        nsp_loss = nn.functional.cross_entropy(relationship_B2, next_sentence_label, reduction="sum")
        nsp_correct = (relationship_B2.argmax(dim=-1) == next_sentence_label).sum()

        head = self.model.lm_head
        masked_PD = head.layer_norm(nn.functional.relu(head.dense(last_BQD[:, 1:].flatten(0, 1))))
        logits_PV, labels_P = head.decoder(masked_PD), labels.flatten()
        mlm_loss = nn.functional.cross_entropy(logits_PV, labels_P, reduction="sum")
        mlm_correct = (logits_PV.argmax(dim=-1) == labels_P).sum()
        return mlm_loss, nsp_loss, torch.stack([mlm_correct, nsp_correct])


def _can_read_values(tensor: torch.Tensor) -> bool:
    """Return whether Python can read values of `tensor` at no cost: on a CPU, and outside `torch.compile`."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _embed(
    input_ids_BL: torch.Tensor,
    token_type_ids_BL: torch.Tensor,
    words_VD: torch.Tensor,
    segments_GD: torch.Tensor,
    positions_LD: torch.Tensor,
) -> torch.Tensor:
    """Add up word, position and segment embeddings.

    On a GPU, the backward pass of an `embedding` with few rows adds with atomics, in an order that changes from run to
    run. The products with the mask of each segment always add in the same order.
    """
    hidden_BLD = nn.functional.embedding(input_ids_BL, words_VD) + positions_LD
    for segment, segment_D in enumerate(segments_GD):
        is_segment_BL1 = (token_type_ids_BL == segment)[..., None].to(segment_D.dtype)
        hidden_BLD = torch.addcmul(hidden_BLD, is_segment_BL1, segment_D)
    return hidden_BLD


def _finish_block(block: D2LBertLayer, values: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Compute the rest of a block at any positions: output projection and feed-forward network."""
    probability, training = block.dropout.p, block.training
    hidden = block.attention_norm(dropout(block.attention.output(values), probability, training) + hidden)
    inner = nn.functional.relu(block.intermediate(hidden), inplace=True)
    return block.output_norm(dropout(block.output(inner), probability, training) + hidden)
