"""Self-attention with fewer matrix products: the same function of the same weights, up to rounding.

`project` and `attend` are plain multi-head attention. `embed_and_project` and `attend_from` give the same results with
less computation; their docstrings have the formulas.

Shape suffixes: B rows, L positions, D hidden size, N attention heads, H size of a head, Q query positions of a row,
G segments, R rows of a table of summands, T tokens of a batch (B·L).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch.nn.functional import embedding, embedding_bag, linear, scaled_dot_product_attention

from bert_snli.fast.dropout import dropout
from bert_snli.modeling.layers_d2l_bert import D2LBertAttention


class Projections(NamedTuple):
    """The queries (scaled by 1/√H), keys and values of all positions, each (B, N, L, H)."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


def _projection_weights(attention: D2LBertAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack the weights (3D, D) and biases (3D,) of queries (scaled), keys and values."""
    weight = torch.cat([attention.query.weight * attention.scaling, attention.key.weight, attention.value.weight])
    bias = torch.cat([attention.query.bias * attention.scaling, attention.key.bias, attention.value.bias])
    return weight, bias


def project(attention: D2LBertAttention, hidden_BLD: torch.Tensor) -> Projections:
    """Compute the queries, keys and values of all positions."""
    projected_BL3D = linear(hidden_BLD, *_projection_weights(attention))
    return _split_heads(attention, projected_BL3D.chunk(3, dim=-1))


def _split_heads(attention: D2LBertAttention, projections_BLD: Iterable[torch.Tensor]) -> Projections:
    return Projections(*(part.unflatten(-1, (-1, attention.head_size)).transpose(1, 2) for part in projections_BLD))


def embed_and_project(
    input_ids_BL: torch.Tensor,
    token_type_ids_BL: torch.Tensor,
    words_VD: torch.Tensor,
    segments_GD: torch.Tensor,
    positions_LD: torch.Tensor,
    attention: D2LBertAttention,
) -> tuple[torch.Tensor, Projections]:
    """Embed a batch and compute the first block's projections, with one matrix product for each distinct summand.

    An input is the sum of a word embedding w and a segment and position embedding s. Its projection is a sum too:
    W(w + s) + b = W w + (W s + b). A batch has far fewer distinct w and s than tokens, and each is projected once.

    Returns:
        The embedded input (B, L, D) and the projections.
    """
    distinct_ids, word_rows_BL = torch.unique(input_ids_BL, return_inverse=True)
    word_table_RD = embedding(distinct_ids, words_VD)
    place_table_RD = (segments_GD[:, None] + positions_LD).flatten(0, 1)
    place_rows_BL = token_type_ids_BL * len(positions_LD) + torch.arange(len(positions_LD))
    rows_BL2 = torch.stack([word_rows_BL, len(word_table_RD) + place_rows_BL], dim=-1)

    weight, bias = _projection_weights(attention)
    projected_words, projected_places = linear(word_table_RD, weight), linear(place_table_RD, weight, bias)
    projected_3RD = torch.cat([projected_words, projected_places]).unflatten(-1, (3, -1)).transpose(0, 1).contiguous()
    tables_RD = torch.cat([word_table_RD, place_table_RD]), *projected_3RD
    sums_TD = SumsOfTwoRows.apply(rows_BL2.flatten(0, 1), *tables_RD)
    hidden_BLD, *projections_BLD = (sum_TD.unflatten(0, rows_BL2.shape[:2]) for sum_TD in sums_TD)
    # Under autocast the hidden states between blocks have its dtype: casts would take a twentieth of a training step.
    return hidden_BLD.to(projected_3RD.dtype), _split_heads(attention, projections_BLD)


class SumsOfTwoRows(torch.autograd.Function):
    """For each table (R, D), the sums (T, D) of two rows: `table[rows[t, 0]] + table[rows[t, 1]]`.

    The gradient of a row is the sum of the gradients of the tokens that use it. `embedding_bag` computes both kinds of
    sums in one pass over memory; its own backward pass takes five times as long.
    """

    @staticmethod
    def forward(ctx, rows_T2: torch.Tensor, *tables_RD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.rows_T2, ctx.num_rows = rows_T2, len(tables_RD[0])
        return tuple(embedding_bag(rows_T2, table_RD, mode="sum") for table_RD in tables_RD)

    @staticmethod
    def backward(ctx, *gradients_TD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows = ctx.rows_T2.flatten()
        # All tokens twice, in the order of the rows that they use: those of row r begin at `starts_R[r]`.
        tokens = torch.argsort(rows, stable=True) // 2
        counts_R = torch.bincount(rows, minlength=ctx.num_rows)
        starts_R = counts_R.cumsum(0) - counts_R
        return None, *(embedding_bag(tokens, part_TD, starts_R, mode="sum") for part_TD in gradients_TD)


def attend(attention: D2LBertAttention, projections: Projections, mask_B11L: torch.Tensor) -> torch.Tensor:
    """Compute the attended values (B, L, D) of all positions, before the output projection."""
    probability = attention.dropout if attention.training else 0.0
    if attention.config._attn_implementation == "eager":
        scores_BNLL = projections.queries @ projections.keys.transpose(2, 3)
        weights_BNLL = dropout(_masked_softmax(scores_BNLL, mask_B11L), probability, attention.training)
        values_BNLH = weights_BNLL @ projections.values
    else:
        values_BNLH = scaled_dot_product_attention(*projections, attn_mask=mask_B11L, dropout_p=probability, scale=1.0)
    return values_BNLH.transpose(1, 2).flatten(2)


def attend_from(
    attention: D2LBertAttention, selected_BQD: torch.Tensor, hidden_BLD: torch.Tensor, mask_B11L: torch.Tensor
) -> torch.Tensor:
    """Compute the attended values (B, Q, D) of a few selected positions, without the keys and values of all positions.

    With query q, hidden states x, key weight K and bias k, value weight V and bias v, and attention weights a:
    q·(K x + k) = (Kᵀq)·x + q·k, and Σ a (V x + v) = V (Σ a x) + v Σ a.
    """
    per_head = (-1, attention.head_size)
    query_BQNH = (attention.query(selected_BQD) * attention.scaling).unflatten(-1, per_head)
    key_weight_NHD, key_bias_NH = (part.unflatten(0, per_head) for part in (attention.key.weight, attention.key.bias))
    value_weight_NHD, value_bias_NH = (
        part.unflatten(0, per_head) for part in (attention.value.weight, attention.value.bias)
    )
    key_query_BQND = torch.einsum("bqnh,nhd->bqnd", query_BQNH, key_weight_NHD)
    # The softmax removes q·k, which is the same for all positions; without it the key bias would have no gradient.
    bias_score_BQN = (query_BQNH * key_bias_NH).sum(-1)
    # One product for all pairs (QN) of a query position and a head.
    scores_BML = key_query_BQND.flatten(1, 2) @ hidden_BLD.transpose(1, 2) + bias_score_BQN.flatten(1)[..., None]
    weights_BML = _masked_softmax(scores_BML, mask_B11L[:, 0])
    weights_BML = dropout(weights_BML, attention.dropout, attention.training)
    mean_BQND = (weights_BML @ hidden_BLD).view_as(key_query_BQND)
    weight_sum_BQN1 = weights_BML.sum(-1).view_as(bias_score_BQN)[..., None]
    values_BQNH = torch.einsum("bqnd,nhd->bqnh", mean_BQND, value_weight_NHD) + value_bias_NH * weight_sum_BQN1
    return values_BQNH.flatten(2)


def _masked_softmax(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compute the softmax over the positions where `mask` is true. Changes `scores`."""
    # Added in place, because `masked_fill` copies the scores, and its backward pass their gradient.
    scores += torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)
