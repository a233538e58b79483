"""Compute self-attention with fewer matrix products. The results are equal up to floating-point rounding.

`project` and `attend` are plain multi-head attention. `embed_and_project` and `attend_from` give the same results with
less computation. Their docstrings have the formulas.

Shape suffixes: B rows, L positions, D hidden size, N attention heads, H size of a head, Q query positions of a row,
M pairs of a query position and a head (Q·N), G segments, R rows of a table of summands, V vocabulary.
"""

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
    return Projections(*projected_BL3D.unflatten(-1, (3, -1, attention.head_size)).permute(2, 0, 3, 1, 4).unbind())


def embed_and_project(
    input_ids_BL: torch.Tensor,
    token_type_ids_BL: torch.Tensor,
    words_VD: torch.Tensor,
    segments_GD: torch.Tensor,
    positions_LD: torch.Tensor,
    attention: D2LBertAttention,
) -> tuple[torch.Tensor, Projections]:
    """Embed a batch (B, L, D) and compute the first block's projections, with one product for each distinct summand.

    An input is the sum of a word embedding w and a segment and position embedding s. Its projection is a sum too:
    W(w + s) + b = W w + (W s + b). A batch has far fewer distinct w and s than tokens, and each is projected once.
    """
    distinct_ids, word_rows_BL = torch.unique(input_ids_BL, return_inverse=True)
    word_table_RD = embedding(distinct_ids, words_VD)
    place_table_RD = (segments_GD[:, None] + positions_LD).flatten(0, 1)
    place_rows_BL = token_type_ids_BL * len(positions_LD) + torch.arange(len(positions_LD))
    rows_BL2 = torch.stack([word_rows_BL, len(word_table_RD) + place_rows_BL], dim=-1)

    weight, bias = _projection_weights(attention)
    projected_R3D = torch.cat([linear(word_table_RD, weight), linear(place_table_RD, weight, bias)])
    projected_3NRH = projected_R3D.unflatten(-1, (3, -1, attention.head_size)).permute(1, 2, 0, 3).contiguous()
    embedded_1RD = torch.cat([word_table_RD, place_table_RD])[None]  # a table with one head
    hidden_B1LD, *projections = SumsOfTwoRows.apply(rows_BL2, embedded_1RD, *projected_3NRH)
    # Under autocast the hidden states between blocks have its dtype, because casts would take 5 % of a training step.
    return hidden_B1LD.squeeze(1).to(projected_R3D.dtype), Projections(*projections)


class SumsOfTwoRows(torch.autograd.Function):
    """Adds two rows of each table (N, R, H): `table[n, rows[b, l, 0]] + table[n, rows[b, l, 1]]`. Shape: (B, N, L, H).

    The gradient of a row is the sum of the gradients of the tokens that use it. `embedding_bag` computes both kinds of
    sums in one pass over memory; its own backward pass takes five times as long. The layout (B, N, L, H) avoids a copy
    before the matrix products of attention.
    """

    @staticmethod
    def forward(ctx, rows_BL2: torch.Tensor, *tables_NRH: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.rows_BL2, ctx.num_rows = rows_BL2, tables_NRH[0].shape[1]
        return tuple(_sum_rows(table_NRH, rows_BL2) for table_NRH in tables_NRH)

    @staticmethod
    def backward(ctx, *gradients_BNLH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows = ctx.rows_BL2.flatten()
        # Each token occurs twice, sorted by the rows that it uses. The tokens of row r begin at `starts_R[r]`.
        tokens = torch.argsort(rows, stable=True) // 2
        counts_R = torch.bincount(rows, minlength=ctx.num_rows)
        starts_R = counts_R.cumsum(0) - counts_R
        return None, *(_sum_tokens(gradient_BNLH, tokens, starts_R) for gradient_BNLH in gradients_BNLH)


def _sum_rows(table_NRH: torch.Tensor, rows_BL2: torch.Tensor) -> torch.Tensor:
    """Add up the two rows of each token and head: (B, N, L, H)."""
    heads, num_rows, head_size = table_NRH.shape
    batch, length, _ = rows_BL2.shape
    rows_BNL2 = rows_BL2[:, None] + num_rows * torch.arange(heads)[:, None, None]  # row numbers in the table (NR, H)
    sums = embedding_bag(rows_BNL2.flatten(0, 2), table_NRH.flatten(0, 1), mode="sum")
    return sums.view(batch, heads, length, head_size)


def _sum_tokens(values_BNLH: torch.Tensor, tokens: torch.Tensor, starts_R: torch.Tensor) -> torch.Tensor:
    """Add up the values of the tokens of each row: (N, R, H). In bf16, `embedding_bag` adds up in fp32."""
    _, heads, length, head_size = values_BNLH.shape
    values = values_BNLH.reshape(-1, head_size)
    first_head = tokens // length * (heads * length) + tokens % length  # row numbers in `values`
    return torch.stack(
        [embedding_bag(first_head + head * length, values, starts_R, mode="sum") for head in range(heads)]
    )


def attend(attention: D2LBertAttention, projections: Projections, mask_B11L: torch.Tensor | None) -> torch.Tensor:
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
    attention: D2LBertAttention, selected_BQD: torch.Tensor, hidden_BLD: torch.Tensor, mask_B11L: torch.Tensor | None
) -> torch.Tensor:
    """Compute the attended values (B, Q, D) at selected positions, without projecting the keys and values of all.

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
    scores_BML = key_query_BQND.flatten(1, 2) @ hidden_BLD.transpose(1, 2) + bias_score_BQN.flatten(1)[..., None]
    weights_BML = _masked_softmax(scores_BML, None if mask_B11L is None else mask_B11L[:, 0])
    weights_BML = dropout(weights_BML, attention.dropout, attention.training)
    mean_BQND = (weights_BML @ hidden_BLD).view_as(key_query_BQND)
    weight_sum_BQN1 = weights_BML.sum(-1).view_as(bias_score_BQN)[..., None]
    values_BQNH = torch.einsum("bqnd,nhd->bqnh", mean_BQND, value_weight_NHD) + value_bias_NH * weight_sum_BQN1
    return values_BQNH.flatten(2)


def _masked_softmax(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Compute the softmax over the positions where `mask` is true. Changes `scores`."""
    if mask is not None:
        # Add in place, because `masked_fill` copies the scores, and its backward pass copies the gradient.
        scores += torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)
