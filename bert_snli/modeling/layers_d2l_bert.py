"""The layers of the D2L-BERT models: embeddings, attention, block, encoder and heads.

The operations have the same order as in d2l, so that converted checkpoints give the same numbers.

Shape suffixes: B rows, L positions, D hidden size, N attention heads, H size of a head (D = N·H), F feed-forward size,
V vocabulary, C labels.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from .configuration_d2l_bert import D2LBertConfig


class D2LBertEmbeddings(nn.Module):
    """Token + segment + position embeddings, summed in that order; no LayerNorm, no dropout (d2l 15.8.4)."""

    def __init__(self, config: D2LBertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(
        self,
        input_ids_BL: torch.Tensor | None,
        token_type_ids_BL: torch.Tensor | None,
        position_ids_BL: torch.Tensor | None,
        inputs_embeds_BLD: torch.Tensor | None,
    ) -> torch.Tensor:
        if inputs_embeds_BLD is None:
            inputs_embeds_BLD = self.word_embeddings(input_ids_BL)
        if position_ids_BL is None:
            length, max_length = inputs_embeds_BLD.shape[1], self.position_embeddings.num_embeddings
            if length > max_length:
                raise ValueError(f"input: has {length} positions, but the model has {max_length}; truncate the input")
            position_ids_BL = torch.arange(length, device=inputs_embeds_BLD.device)
        if token_type_ids_BL is None:
            token_type_ids_BL = inputs_embeds_BLD.new_zeros(inputs_embeds_BLD.shape[:2], dtype=torch.long)
        segments_BLD = self.token_type_embeddings(token_type_ids_BL)
        return inputs_embeds_BLD + segments_BLD + self.position_embeddings(position_ids_BL)


class D2LBertAttention(nn.Module):
    """Multi-head self-attention with biases on all four projections (d2l 11.5).

    d2l sets masked scores to −1e6, `transformers` to the smallest finite number. The softmax of both is exactly 0.
    """

    def __init__(self, config: D2LBertConfig):
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_size**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_BLD: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query_BNLH, key_BNLH, value_BNLH = (
            projection(hidden_BLD).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        values_BLNH, weights_BNLL = attention(
            self,
            query_BNLH,
            key_BNLH,
            value_BNLH,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.output(values_BLNH.flatten(2)), weights_BNLL


class D2LBertLayer(GradientCheckpointingLayer):
    """One post-LayerNorm Transformer block: attention, then a ReLU feed-forward network (d2l 11.7)."""

    def __init__(self, config: D2LBertConfig):
        super().__init__()
        self.attention = D2LBertAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_BLD: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs) -> torch.Tensor:
        attended_BLD, _ = self.attention(hidden_BLD, attention_mask, **kwargs)
        hidden_BLD = self.attention_norm(self.dropout(attended_BLD) + hidden_BLD)
        inner_BLF = nn.functional.relu(self.intermediate(hidden_BLD))
        return self.output_norm(self.dropout(self.output(inner_BLF)) + hidden_BLD)


class D2LBertEncoder(nn.Module):
    """The sequence of all blocks."""

    def __init__(self, config: D2LBertConfig):
        super().__init__()
        self.layer = nn.ModuleList(D2LBertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_BLD: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs) -> torch.Tensor:
        for layer in self.layer:
            hidden_BLD = layer(hidden_BLD, attention_mask, **kwargs)
        return hidden_BLD


class D2LBertMaskedLMHead(nn.Module):
    """Linear, ReLU, LayerNorm and Linear to the vocabulary: d2l's `mlm` (d2l 15.8.5.1)."""

    def __init__(self, config: D2LBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.layer_norm(nn.functional.relu(self.dense(hidden_BLD))))


class D2LBertMatchingHead(nn.Module):
    """Linear, ReLU, dropout and Linear on the pooled output, u, v, |u − v| and u ⊙ v.

    u and v are the mean hidden states of the two sentences. These features are from Conneau et al. (2017) and Mou et
    al. (2016), who encode the sentences separately. They are not in d2l.
    """

    def __init__(self, config: D2LBertConfig):
        super().__init__()
        if config.type_vocab_size != 2:
            raise ValueError(f"type_vocab_size {config.type_vocab_size}: the matching head needs 2; set it to 2")
        self.dense = nn.Linear(5 * config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.output = nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        pooled_BD: torch.Tensor,
        hidden_BLD: torch.Tensor,
        attention_mask_BL: torch.Tensor | None,
        token_type_ids_BL: torch.Tensor | None,
    ) -> torch.Tensor:
        """Compute the logits (B, C). `<cls>` and `<sep>` are tokens of their sentence; the mean of no tokens is 0."""
        if token_type_ids_BL is None:
            what = "missing, but the matching head needs them to separate the two sentences"
            raise ValueError(f"token_type_ids: {what}; pass all outputs of tokenizer(premise, hypothesis)")
        within_B2L = torch.stack([token_type_ids_BL == sentence for sentence in range(2)], dim=1)
        if attention_mask_BL is not None:
            if attention_mask_BL.dim() != 2:
                raise ValueError("attention_mask: the matching head needs the shape (batch, length); pass such a mask")
            within_B2L = within_B2L & attention_mask_BL[:, None].bool()
        counts_B21 = within_B2L.sum(dim=-1, keepdim=True).clamp(min=1)
        first_BD, second_BD = (within_B2L.to(hidden_BLD.dtype) @ hidden_BLD / counts_B21).unbind(dim=1)
        matched = [pooled_BD, first_BD, second_BD, (first_BD - second_BD).abs(), first_BD * second_BD]
        inner_BD = nn.functional.relu(self.dense(torch.cat(matched, dim=-1)))
        return self.output(self.dropout(inner_BD))
