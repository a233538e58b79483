"""The BERT of *Dive into Deep Learning* (d2l.ai, sections 15.8 to 15.10) as `transformers` models.

Unlike `transformers.BertModel` it has no LayerNorm and no dropout on the embeddings, its feed-forward network is
ReLU, and the decoder of its masked-language-model head is not tied to the word embeddings. Every sum and product is
taken in the book's order, so that converted checkpoints give the book's numbers.

This file travels to the hub beside the weights: it imports nothing of `bert_snli` but what lies beside it.

Shape suffixes: B rows, L positions, D hidden size, N heads, H size of a head (D = N·H), F feed-forward size,
V vocabulary, C labels.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_d2l_bert import D2LBertConfig
from .nli_pipeline import CUSTOM_PIPELINES  # `save_pretrained` copies what this file imports, so the pipeline travels

AUTO_MAP = {
    "AutoConfig": "configuration_d2l_bert.D2LBertConfig",
    "AutoModel": "modeling_d2l_bert.D2LBertModel",
    "AutoModelForPreTraining": "modeling_d2l_bert.D2LBertForPreTraining",
    "AutoModelForMaskedLM": "modeling_d2l_bert.D2LBertForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_d2l_bert.D2LBertForSequenceClassification",
}
# `transformers` adds `use_cache` to the keyword arguments if the configuration has it; `Trainer` sets it there.
FORWARD_KWARGS = frozenset({*TransformersKwargs.__annotations__, "use_cache"})


def eager_attention_forward(
    module: nn.Module,
    query_BNLH: torch.Tensor,
    key_BNLH: torch.Tensor,
    value_BNLH: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention spelled out (d2l 11.3): the values (B, L, N, H) and the weights (B, N, L, L).

    Masked scores get the smallest finite number where the book puts −1e6: after the softmax both are exactly 0.
    """
    scores_BNLL = torch.matmul(query_BNLH, key_BNLH.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores_BNLL = scores_BNLL + attention_mask
    weights_BNLL = nn.functional.softmax(scores_BNLL, dim=-1)
    dropped_BNLL = nn.functional.dropout(weights_BNLL, p=dropout, training=module.training)
    values_BLNH = torch.matmul(dropped_BNLL, value_BNLH).transpose(1, 2).contiguous()
    return values_BLNH, weights_BNLL


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
            length = inputs_embeds_BLD.shape[1]
            if length > self.position_embeddings.num_embeddings:
                raise ValueError(
                    f"{length} positions, but the model has {self.position_embeddings.num_embeddings} "
                    "(max_position_embeddings); truncate the input"
                )
            position_ids_BL = torch.arange(length, device=inputs_embeds_BLD.device)
        if token_type_ids_BL is None:
            token_type_ids_BL = torch.zeros(
                inputs_embeds_BLD.shape[:2], dtype=torch.long, device=inputs_embeds_BLD.device
            )
        segments_BLD = self.token_type_embeddings(token_type_ids_BL)
        return inputs_embeds_BLD + segments_BLD + self.position_embeddings(position_ids_BL)


class D2LBertAttention(nn.Module):
    """Multi-head self-attention with biases on all four projections (d2l 11.5)."""

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
        def heads(projected_BLD: torch.Tensor) -> torch.Tensor:
            return projected_BLD.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        values_BLNH, weights_BNLL = attention(
            self,
            heads(self.query(hidden_BLD)),
            heads(self.key(hidden_BLD)),
            heads(self.value(hidden_BLD)),
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
    """The stack of blocks."""

    def __init__(self, config: D2LBertConfig):
        super().__init__()
        self.layer = nn.ModuleList(D2LBertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_BLD: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs) -> BaseModelOutput:
        for layer in self.layer:
            hidden_BLD = layer(hidden_BLD, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_BLD)


class D2LBertPooler(nn.Module):
    """The book's `hidden`: Linear and tanh on the first position, `<cls>` (d2l 15.8.6)."""

    def __init__(self, config: D2LBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.dense(hidden_BLD[:, 0]))


class D2LBertMaskedLMHead(nn.Module):
    """The book's `mlm`: Linear, ReLU, LayerNorm, Linear to the vocabulary (d2l 15.8.5.1)."""

    def __init__(self, config: D2LBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.layer_norm(nn.functional.relu(self.dense(hidden_BLD))))


class D2LBertMatchingHead(nn.Module):
    """Linear, ReLU, dropout, Linear on the pooled output beside both sentences' mean states u and v, |u − v| and u ⊙ v.

    The book has no such head. Sentences that are encoded apart are matched so by Conneau et al. (2017), after Mou et
    al. (2016); here each has read the other.

    Raises:
        ValueError: the model knows another number of segments than two.
    """

    def __init__(self, config: D2LBertConfig):
        super().__init__()
        if config.type_vocab_size != 2:
            raise ValueError(f"type_vocab_size is {config.type_vocab_size}; the matching head matches 2 sentences")
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
        """Compute the logits (B, C) from the pooled output and the states of the last block.

        `<cls>` and `<sep>` count as tokens of their sentence. A sentence without tokens has a mean of 0.

        Raises:
            ValueError: `token_type_ids_BL` is missing, or the mask is not (B, L).
        """
        if token_type_ids_BL is None:
            raise ValueError(
                "token_type_ids: missing, but the matching head needs them to tell the two sentences apart; "
                "pass those that tokenizer(premise, hypothesis) returns"
            )
        within_B2L = torch.stack([token_type_ids_BL == sentence for sentence in range(2)], dim=1)
        if attention_mask_BL is not None:
            if attention_mask_BL.dim() != 2:
                raise ValueError("the matching head takes an attention_mask of rows and positions alone")
            within_B2L = within_B2L & attention_mask_BL[:, None].bool()
        counts_B21 = within_B2L.sum(dim=-1, keepdim=True).clamp(min=1)
        first_BD, second_BD = (within_B2L.to(hidden_BLD.dtype) @ hidden_BLD / counts_B21).unbind(dim=1)
        matched = [pooled_BD, first_BD, second_BD, (first_BD - second_BD).abs(), first_BD * second_BD]
        inner_BD = nn.functional.relu(self.dense(torch.cat(matched, dim=-1)))
        return self.output(self.dropout(inner_BD))


class D2LBertPreTrainedModel(PreTrainedModel):
    """What all D2L-BERT models share: loading, saving, attention implementations, initial weights."""

    config_class = D2LBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["D2LBertEmbeddings", "D2LBertLayer"]
    _can_record_outputs = {"hidden_states": D2LBertLayer, "attentions": D2LBertAttention}
    # The losses are means over the batch: without this, `Trainer` would add them up over accumulated batches.
    accepts_loss_kwargs = False

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save weights, configuration and the code beside them.

        So the folder opens under every Auto class of `AUTO_MAP`, a classifier's under the pipeline of its own as well.
        """
        self.config.auto_map = dict(AUTO_MAP)
        others = {
            task: entry
            for task, entry in (getattr(self.config, "custom_pipelines", None) or {}).items()
            if task not in CUSTOM_PIPELINES
        }
        # A copy, as `transformers.pipeline` puts classes into the entry of a configuration that it is given.
        ours = deepcopy(CUSTOM_PIPELINES) if isinstance(self, D2LBertForSequenceClassification) else {}
        self.config.custom_pipelines = {**others, **ours}
        super().save_pretrained(save_directory, *args, **kwargs)


class D2LBertModel(D2LBertPreTrainedModel):
    """The encoder, and its pooler unless `add_pooling_layer` is false."""

    def __init__(self, config: D2LBertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = D2LBertEmbeddings(config)
        self.encoder = D2LBertEncoder(config)
        self.pooler = D2LBertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode `input_ids` (B, L): `last_hidden_state` (B, L, D) and `pooler_output` (B, D).

        `attention_mask` (B, L) is 1 at tokens and 0 at padding; `token_type_ids` (B, L) is the book's `segments`;
        `position_ids` (B, L) is 0 to L - 1 by default.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`; more positions than the model has.
            TypeError: a keyword argument that is neither here nor in `TransformersKwargs`.
        """
        for name in kwargs:
            if name not in FORWARD_KWARGS:
                raise TypeError(f"forward() got an unexpected keyword argument {name!r}")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embedded_BLD = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=embedded_BLD, attention_mask=attention_mask)
        hidden_BLD = self.encoder(embedded_BLD, mask, position_ids=position_ids, **kwargs).last_hidden_state
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_BLD,
            pooler_output=self.pooler(hidden_BLD) if self.pooler is not None else None,
        )


@dataclass
class D2LBertForPreTrainingOutput(ModelOutput):
    """`loss` (sum of both losses), `prediction_logits` (B, L, V), `seq_relationship_logits` (B, 2)."""

    loss: torch.Tensor | None = None
    prediction_logits: torch.Tensor | None = None
    seq_relationship_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class D2LBertForPreTraining(D2LBertPreTrainedModel):
    """Masked language model and next-sentence prediction: the book's `BERTModel` (d2l 15.8.6)."""

    def __init__(self, config: D2LBertConfig):
        super().__init__(config)
        self.bert = D2LBertModel(config)
        self.lm_head = D2LBertMaskedLMHead(config)
        self.nsp_head = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        next_sentence_label: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> D2LBertForPreTrainingOutput:
        """`labels` (B, L): ids to predict, −100 elsewhere. `next_sentence_label` (B,): 1 = is next, as in the book."""
        outputs = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        prediction_BLV = self.lm_head(outputs.last_hidden_state)
        relationship_B2 = self.nsp_head(outputs.pooler_output)
        losses = []
        if labels is not None:
            losses.append(nn.functional.cross_entropy(prediction_BLV.flatten(0, 1), labels.flatten()))
        if next_sentence_label is not None:
            losses.append(nn.functional.cross_entropy(relationship_B2, next_sentence_label))
        return D2LBertForPreTrainingOutput(
            loss=torch.stack(losses).sum() if losses else None,
            prediction_logits=prediction_BLV,
            seq_relationship_logits=relationship_B2,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class D2LBertForMaskedLM(D2LBertPreTrainedModel):
    """Masked language model alone: `pipeline("fill-mask")` runs on it."""

    _keys_to_ignore_on_load_unexpected = [r"pooler", r"nsp_head"]

    def __init__(self, config: D2LBertConfig):
        super().__init__(config)
        self.bert = D2LBertModel(config, add_pooling_layer=False)
        self.lm_head = D2LBertMaskedLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """`labels` (B, L): ids to predict, −100 where nothing is; `logits` (B, L, V)."""
        outputs = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        logits_BLV = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits_BLV.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(
            loss=loss,
            logits=logits_BLV,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class D2LBertForSequenceClassification(D2LBertPreTrainedModel):
    """A label for a sentence or a pair: the book's `BERTClassifier` (d2l 15.7).

    `config.classifier_head` chooses between the book's head, that of the chapter's first form, and one that matches
    the two sentences.
    """

    _keys_to_ignore_on_load_unexpected = [r"lm_head", r"nsp_head"]

    def __init__(self, config: D2LBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = D2LBertModel(config, add_pooling_layer=config.classifier_head != "mlp")
        if config.classifier_head == "pooler":
            self.classifier: nn.Module = nn.Linear(config.hidden_size, config.num_labels)
        elif config.classifier_head == "matching":
            self.classifier = D2LBertMatchingHead(config)
        else:
            self.classifier = nn.Sequential(
                nn.Linear(config.hidden_size, config.classifier_hidden_size),
                nn.ReLU(),
                nn.Linear(config.classifier_hidden_size, config.num_labels),
            )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear) and any(module is part for part in self.classifier.modules()):
            # The book's fresh output layer starts as PyTorch initialises a Linear, not from N(0, initializer_range).
            bound = module.in_features**-0.5
            initialization.uniform_(module.weight, -bound, bound)
            initialization.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """`logits` (B, C); with `labels` also the loss that `config.problem_type` names.

        The matching head needs `token_type_ids` to tell the sentences apart, and an `attention_mask` of (B, L), if any.

        Raises:
            ValueError: as `D2LBertModel`; the matching head gets no `token_type_ids` or a mask of another shape.
        """
        outputs = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        hidden_BLD, pooled_BD = outputs.last_hidden_state, outputs.pooler_output
        if self.config.classifier_head == "matching":
            logits_BC = self.classifier(pooled_BD, hidden_BLD, attention_mask, token_type_ids)
        else:
            logits_BC = self.classifier(hidden_BLD[:, 0] if pooled_BD is None else pooled_BD)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits_BC, config=self.config)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits_BC,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


D2LBertConfig.register_for_auto_class()
for _model_class in (
    D2LBertModel,
    D2LBertForPreTraining,
    D2LBertForMaskedLM,
    D2LBertForSequenceClassification,
):
    _auto_class = next(auto for auto, name in AUTO_MAP.items() if name.endswith("." + _model_class.__name__))
    _model_class.register_for_auto_class(_auto_class)
