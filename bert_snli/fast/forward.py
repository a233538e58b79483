"""Logits and losses with fewer matrix products: the same functions of the same weights, up to rounding.

Computation that does not affect the output is skipped, and repeated computation is done once:

- The last block is computed only at `<cls>`, which the pooler reads, and at the masked positions. (The matching head
  reads all positions, so nothing of the last block is skipped.)
- The last block's keys and values are not projected: with few queries, `q·(K x)` costs less as `(Kᵀq)·x`, and
  `Σ a (V x)` as `V (Σ a x)`.
- On a CPU, the first block projects each different token of a batch once. Its input is a sum of word, segment and
  position embeddings, so these are projected separately and the projections are added.

Each result depends on the weights and the batch only: nothing is stored between calls, so one module may be called from
several threads. All inputs of a call must be on the device of the weights; the caller moves them there.

`modeling/` computes everything, as `transformers` expects; the tests compare the two.

Shape suffixes: B rows, L positions, D hidden size, N heads, H size of a head, S different sources of an input
(tokens, and pairs of a segment and a position), V vocabulary, C labels, Q masked positions in a row, P in all rows.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from bert_snli.fast.cross_entropy import IGNORED, linear_cross_entropy
from bert_snli.fast.dropout import dropped
from bert_snli.fast.embedding_rows import EmbeddingRows
from bert_snli.modeling import D2LBertForPreTraining, D2LBertForSequenceClassification
from bert_snli.modeling.modeling_d2l_bert import D2LBertAttention, D2LBertLayer

MIN_ROWS_TO_SHARE = 4  # in a smaller batch too few tokens occur twice


class Heads(NamedTuple):
    """Queries (scaled), keys and values, each (B, N, L, H)."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


class Sources(NamedTuple):
    """What inputs are sums of, a word and a pair of segment and position each, and the first block's projections."""

    embedded_SD: torch.Tensor
    projected_S3D: torch.Tensor  # of queries (scaled), keys and values
    num_words: int
    num_positions: int


class FastEncoder(nn.Module):
    """All blocks of a model except the last. The weights are the model's own."""

    def __init__(self, model: D2LBertForSequenceClassification | D2LBertForPreTraining):
        super().__init__()
        self.model = model
        self.embedding_rows: EmbeddingRows | None = None
        self.config = model.config

    def before_last(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute the input of the last block (B, L, D) and its mask (B, 1, 1, L). All arguments are (B, L).

        Raises:
            ValueError: more positions than the model has.
        """
        embeddings = self.model.bert.embeddings
        blocks = cast("list[D2LBertLayer]", list(self.model.bert.encoder.layer)[:-1])
        if input_ids.shape[1] > len(embeddings.position_embeddings.weight):
            raise ValueError(
                f"{input_ids.shape[1]} positions, but the model has {len(embeddings.position_embeddings.weight)} "
                "(max_position_embeddings); truncate the input"
            )
        mask_B11L = _mask(attention_mask)
        words = embeddings.word_embeddings.weight
        if self.embedding_rows is not None:
            input_ids, words = self.embedding_rows.places_V[input_ids], self.embedding_rows.weight
        segments = embeddings.token_type_embeddings.weight
        positions = embeddings.position_embeddings.weight[: input_ids.shape[1]]
        heads = None
        if blocks and len(input_ids) >= MIN_ROWS_TO_SHARE and _values_are_readable(input_ids):
            tokens, places_BL = torch.unique(input_ids, return_inverse=True)
            sources = _sources(nn.functional.embedding(tokens, words), segments, positions, blocks[0].attention)
            hidden_BLD, heads = _embed(sources, places_BL, token_type_ids, blocks[0].attention.head_size)
        else:
            hidden_BLD = _add_segments(nn.functional.embedding(input_ids, words) + positions, token_type_ids, segments)
        for block in blocks:
            values_BLD = _attend(block.attention, heads or _project(block.attention, hidden_BLD), mask_B11L)
            hidden_BLD = _finish(block, values_BLD, hidden_BLD)
            heads = None
        return hidden_BLD, mask_B11L

    @property
    def last(self) -> D2LBertLayer:
        """The last block, of which few positions are wanted, unless a head reads all."""
        return cast(D2LBertLayer, self.model.bert.encoder.layer[-1])


class FastClassifier(FastEncoder):
    """The logits of a `D2LBertForSequenceClassification`, with its own weights and fewer products."""

    model: D2LBertForSequenceClassification

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> SequenceClassifierOutput:
        """`logits` (B, C) of `input_ids`, `attention_mask` and `token_type_ids`, all (B, L).

        Raises:
            ValueError: more positions than the model has.
        """
        hidden_BLD, mask_B11L = self.before_last(input_ids, attention_mask, token_type_ids)
        attention, pooler = self.last.attention, self.model.bert.pooler
        if self.config.classifier_head == "matching":  # it reads all positions
            values_BLD = _attend(attention, _project(attention, hidden_BLD), mask_B11L)
            last_BLD = _finish(self.last, values_BLD, hidden_BLD)
            pooled_BD = cast(nn.Module, pooler)(last_BLD)
            logits_BC = self.model.classifier(pooled_BD, last_BLD, attention_mask, token_type_ids)
            return SequenceClassifierOutput(logits=logits_BC)
        first_B1D = hidden_BLD[:, :1]
        last_B1D = _finish(self.last, _attend_some(attention, first_B1D, hidden_BLD, mask_B11L), first_B1D)
        pooled_BD = last_B1D[:, 0] if pooler is None else pooler(last_B1D)
        return SequenceClassifierOutput(logits=self.model.classifier(pooled_BD))

    def train_rows(self, used_R: torch.Tensor) -> None:
        """Train these rows of the word embedding, all that the training data hold, in place of the whole."""
        self.embedding_rows = EmbeddingRows(self.model.bert.embeddings.word_embeddings, used_R)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the rows that are not trained decay with each step of `optimizer`."""
        rows = self.embedding_rows
        if rows is not None:
            optimizer.register_step_post_hook(lambda optimizer, *_: rows.decay_others(optimizer))

    def write_back(self) -> None:
        """Bring the model's word embedding up to date with the rows that were trained."""
        if self.embedding_rows is not None:
            self.embedding_rows.write_back(self.model.bert.embeddings.word_embeddings)


def _values_are_readable(tensor: torch.Tensor) -> bool:
    """Whether Python may read the values of `tensor`: on a CPU, outside `torch.compile`. A GPU would be waited for."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _mask(attention_mask_BL: torch.Tensor) -> torch.Tensor | None:
    """Make the mask (B, 1, 1, L), true at tokens; None if nothing is padded and the values are readable."""
    if _values_are_readable(attention_mask_BL) and bool(attention_mask_BL.all()):
        return None
    return attention_mask_BL[:, None, None].bool()


def _add_segments(hidden_BLD: torch.Tensor, token_type_ids_BL: torch.Tensor, segments_SD: torch.Tensor) -> torch.Tensor:
    """Add to each position the embedding of its segment; `segments_SD` has a row for each segment.

    The backward pass of `embedding` adds with atomics on a GPU when there are few rows, in an order that changes from
    run to run. The sum of a product is always taken in the same order.
    """
    for segment, row_D in enumerate(segments_SD):
        is_segment_BL1 = (token_type_ids_BL == segment)[..., None].to(row_D.dtype)
        hidden_BLD = torch.addcmul(hidden_BLD, is_segment_BL1, row_D)
    return hidden_BLD


def _weights(attention: D2LBertAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (3D, D) and biases (3D,) of queries, keys and values; those of the queries hold the scale."""
    weight = torch.cat([attention.query.weight * attention.scaling, attention.key.weight, attention.value.weight])
    bias = torch.cat([attention.query.bias * attention.scaling, attention.key.bias, attention.value.bias])
    return weight, bias


def _project(attention: D2LBertAttention, hidden_BLD: torch.Tensor) -> Heads:
    projected = nn.functional.linear(hidden_BLD, *_weights(attention))
    return Heads(*projected.unflatten(-1, (3, -1, attention.head_size)).permute(2, 0, 3, 1, 4).unbind())


class SourceSums(torch.autograd.Function):
    """The embedded input (B, L, D) and the first block's `Heads`, each the sum of a token's two sources.

    On the way back, each source's sum over its tokens: both ways are bags of rows of a table, which PyTorch adds up in
    one pass.
    """

    @staticmethod
    def forward(ctx, embedded_SD, projected_S3D, sources_BL2, head_size: int):
        ctx.sources_BL2, ctx.num_sources = sources_BL2, len(embedded_SD)
        rows, length, _ = sources_BL2.shape
        hidden = nn.functional.embedding_bag(sources_BL2.flatten(0, 1), embedded_SD, mode="sum")
        # A source has 3N vectors of H numbers; they are summed where attention wants them, which saves it the copies.
        num_vectors = projected_S3D.shape[1] // head_size
        vectors = torch.arange(num_vectors).view(3, 1, -1, 1, 1)
        vectors_3BNL2 = sources_BL2[:, None] * num_vectors + vectors
        sums = nn.functional.embedding_bag(vectors_3BNL2.flatten(0, 3), projected_S3D.view(-1, head_size), mode="sum")
        return hidden.view(rows, length, -1), *sums.view(3, rows, -1, length, head_size).unbind()

    @staticmethod
    def backward(ctx, of_hidden_BLD, *of_heads):
        rows, length, _ = ctx.sources_BL2.shape
        _, heads, _, head_size = of_heads[0].shape
        sources = ctx.sources_BL2.flatten().numpy()
        tokens = torch.from_numpy(np.argsort(sources.astype(np.int32), kind="stable") // 2)
        counts_S = torch.from_numpy(np.bincount(sources, minlength=ctx.num_sources))
        starts_S = counts_S.cumsum(0) - counts_S
        of_embedded_SD = _bag_sums(of_hidden_BLD.flatten(0, 1), tokens, starts_S)
        places = (tokens // length) * (heads * length) + tokens % length
        vectors = (torch.arange(heads)[:, None] * length + places).flatten()
        starts_NS = torch.arange(heads)[:, None] * len(tokens) + starts_S
        of_vectors_3NS = torch.cat(
            [_bag_sums(part_BNLH.reshape(-1, head_size), vectors, starts_NS.flatten()) for part_BNLH in of_heads]
        )
        of_projected_S3D = of_vectors_3NS.view(3 * heads, -1, head_size).transpose(0, 1).flatten(1)
        return of_embedded_SD, of_projected_S3D, None, None


def _bag_sums(table: torch.Tensor, rows: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """The sums of `table[rows[starts[i] : starts[i + 1]]]`; those of bf16 are added up in fp32, then rounded."""
    return nn.functional.embedding_bag(rows, table, starts, mode="sum")


def _sources(
    words: torch.Tensor, segments: torch.Tensor, positions: torch.Tensor, attention: D2LBertAttention
) -> Sources:
    """`Sources` of these rows of the embeddings, each projected once by the first block's `attention`."""
    weight, bias = _weights(attention)
    others_SD = (segments[:, None] + positions).flatten(0, 1)
    projected = [nn.functional.linear(words, weight), nn.functional.linear(others_SD, weight, bias)]
    return Sources(torch.cat([words, others_SD]), torch.cat(projected), len(words), len(positions))


def _embed(
    sources: Sources, places_BL: torch.Tensor, token_type_ids_BL: torch.Tensor, head_size: int
) -> tuple[torch.Tensor, Heads]:
    """The embedded input (B, L, D) and the first block's `Heads`; `places_BL` says which of the words each token is."""
    others_BL = sources.num_words + token_type_ids_BL * sources.num_positions + torch.arange(places_BL.shape[1])
    sources_BL2 = torch.stack([places_BL, others_BL], dim=-1)
    hidden_BLD, *heads = SourceSums.apply(sources.embedded_SD, sources.projected_S3D, sources_BL2, head_size)
    # In bf16 the sums between blocks are too, as products read them: casts cost a twentieth of a step of pretraining.
    return hidden_BLD.to(heads[0].dtype), Heads(*heads)


def _attend(attention: D2LBertAttention, heads: Heads, mask_B11L: torch.Tensor | None) -> torch.Tensor:
    """The values (B, L, D) that attention mixes, before its output projection."""
    rate = attention.dropout if attention.training else 0.0
    if attention.config._attn_implementation == "eager":
        scores_BNLL = heads.queries @ heads.keys.transpose(2, 3)
        values_BNLH = dropped(_softmax_(scores_BNLL, mask_B11L), rate, attention.training) @ heads.values
    else:
        values_BNLH = nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask_B11L, dropout_p=rate, scale=1.0)
    return values_BNLH.transpose(1, 2).flatten(2)


def _softmax_(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Of `scores`, which it changes, where `mask` is true; that is somewhere in each row."""
    if mask is not None:  # added in place: masked_fill copies the scores, and its way back their gradient
        scores += torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)


def _attend_some(
    attention: D2LBertAttention, some_BQD: torch.Tensor, hidden_BLD: torch.Tensor, mask_B11L: torch.Tensor | None
) -> torch.Tensor:
    """The values (B, Q, D) that attention mixes for some of the positions, without projecting the others."""
    heads = (-1, attention.head_size)
    queries_BQNH = (attention.query(some_BQD) * attention.scaling).unflatten(-1, heads)
    keys_NHD, values_NHD = (part.weight.unflatten(0, heads) for part in (attention.key, attention.value))
    key_bias_NH, value_bias_NH = (part.bias.unflatten(0, heads) for part in (attention.key, attention.value))
    looked_for_BQND = torch.einsum("bqnh,nhd->bqnd", queries_BQNH, keys_NHD)
    # The biases are the same for all positions, so without effect; but every parameter is to have its gradient.
    biases_BQN1 = (queries_BQNH * key_bias_NH).sum(-1, keepdim=True)
    scores_BRL = looked_for_BQND.flatten(1, 2) @ hidden_BLD.transpose(1, 2) + biases_BQN1.flatten(1, 2)  # R = Q·N
    mask_B1L = None if mask_B11L is None else mask_B11L[:, 0]
    weights_BRL = dropped(_softmax_(scores_BRL, mask_B1L), attention.dropout, attention.training)
    mixed_BQND = (weights_BRL @ hidden_BLD).view_as(looked_for_BQND)
    values_BQNH = torch.einsum("bqnd,nhd->bqnh", mixed_BQND, values_NHD)
    values_BQNH = values_BQNH + value_bias_NH * weights_BRL.sum(-1).view(*values_BQNH.shape[:3], 1)
    return values_BQNH.flatten(2)


class FastPreTraining(FastEncoder):
    """The losses of a `D2LBertForPreTraining`: its last block at `<cls>` and where a word is to be predicted alone."""

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
        """Sums of the cross-entropies of the words and of the next sentences, and how many of each are right (2,).

        `predicted` (B, Q) are the columns of the words to be predicted and `labels` (B, Q) their ids, −100 where a row
        has no more; `next_sentence_label` (B,) is 1 where the second sentence is the next, −100 for no row.
        """
        hidden_BLD, mask_B11L = self.before_last(input_ids, attention_mask, token_type_ids)
        columns_BQ = torch.cat([torch.zeros_like(predicted[:, :1]), predicted], dim=1)
        rows, length, _ = hidden_BLD.shape
        begins_B1 = torch.arange(0, rows * length, length, device=columns_BQ.device)[:, None]
        some_BQD = nn.functional.embedding(begins_B1 + columns_BQ, hidden_BLD.flatten(0, 1))
        last_BQD = _finish(self.last, _attend_some(self.last.attention, some_BQD, hidden_BLD, mask_B11L), some_BQD)
        pooler = cast(nn.Module, self.model.bert.pooler)
        relationship_B2 = self.model.nsp_head(pooler(last_BQD))
        nsp_loss = nn.functional.cross_entropy(relationship_B2, next_sentence_label, reduction="sum")
        nsp_right = (relationship_B2.argmax(dim=-1) == next_sentence_label).sum()
        words_PD, labels_P = last_BQD[:, 1:].flatten(0, 1), labels.flatten()
        if _values_are_readable(labels):
            counted_P = (labels_P != IGNORED).nonzero()[:, 0]
            words_PD, labels_P = words_PD[counted_P], labels_P[counted_P]
        head = self.model.lm_head
        mlm_loss, mlm_right = linear_cross_entropy(
            head.layer_norm(nn.functional.relu(head.dense(words_PD))), head.decoder, labels_P
        )
        return mlm_loss, nsp_loss, torch.stack([mlm_right, nsp_right])


def _finish(block: D2LBertLayer, values: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The rest of a block, at any positions: output projection, feed-forward network, both with dropout and norm."""
    rate, training = block.dropout.p, block.training
    hidden = block.attention_norm(dropped(block.attention.output(values), rate, training) + hidden)
    inner = nn.functional.relu(block.intermediate(hidden), inplace=True)
    return block.output_norm(dropped(block.output(inner), rate, training) + hidden)
