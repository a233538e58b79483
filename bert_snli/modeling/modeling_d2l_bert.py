"""The BERT of *Dive into Deep Learning* (d2l.ai, sections 15.8 to 15.10) as `transformers` models.

It has the pooler of `transformers.BertModel`, which is d2l's `hidden`. Unlike `BertModel`, it has no LayerNorm and no
dropout on the embeddings, its feed-forward network uses ReLU, and the decoder of its masked-language-model head is not
tied to the word embeddings.

A change of the forward pass needs the same change in `bert_snli/fast/forward.py`, which training and prediction use.

Shape suffixes: B rows, L positions, D hidden size, V vocabulary, C labels.
"""

from copy import deepcopy

import torch
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput, BertPooler
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_d2l_bert import D2LBertConfig
from .layers_d2l_bert import (
    D2LBertAttention,
    D2LBertEmbeddings,
    D2LBertEncoder,
    D2LBertLayer,
    D2LBertMaskedLMHead,
    D2LBertMatchingHead,
)
from .nli_pipeline import CUSTOM_PIPELINES  # imported also so that `save_pretrained` copies the pipeline


class D2LBertPreTrainedModel(PreTrainedModel):
    """The base class of the D2L-BERT models: loading, saving and attention implementations."""

    config_class = D2LBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _input_embed_layer = "word_embeddings"
    _no_split_modules = ["D2LBertEmbeddings", "D2LBertLayer"]
    _can_record_outputs = {"hidden_states": D2LBertLayer, "attentions": D2LBertAttention}
    # The losses are means over the batch. Without this, `Trainer` would sum them over accumulated batches.
    accepts_loss_kwargs = False

    def get_output_embeddings(self) -> nn.Linear | None:
        return self.lm_head.decoder if hasattr(self, "lm_head") else None

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head.decoder = new_embeddings

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save weights, configuration and code, so that Auto classes and a classifier's pipeline load the folder."""
        self.config.auto_map = dict(AUTO_MAP)
        saved = getattr(self.config, "custom_pipelines", None) or {}
        pipelines = {task: entry for task, entry in saved.items() if task not in CUSTOM_PIPELINES}
        if isinstance(self, D2LBertForSequenceClassification):
            pipelines |= deepcopy(CUSTOM_PIPELINES)  # `transformers.pipeline` puts classes into the entries
        self.config.custom_pipelines = pipelines
        super().save_pretrained(save_directory, *args, **kwargs)


class D2LBertModel(D2LBertPreTrainedModel):
    """The encoder, with a pooler unless `add_pooling_layer` is false.

    Example:
        >>> import torch
        >>> from bert_snli import D2LBertConfig, D2LBertModel
        >>> config = D2LBertConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_attention_heads=2)
        >>> D2LBertModel(config)(torch.tensor([[1, 5, 2]])).last_hidden_state.shape
        torch.Size([1, 3, 16])
    """

    def __init__(self, config: D2LBertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = D2LBertEmbeddings(config)
        self.encoder = D2LBertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()

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
        """Compute `last_hidden_state` (B, L, D) and `pooler_output` (B, D).

        Args:
            input_ids: token ids (B, L).
            attention_mask: 1 at tokens and 0 at padding (B, L); all ones by default.
            token_type_ids: 0 in the first sentence and 1 in the second (B, L), d2l's `segments`; zeros by default.
            position_ids: 0 to L - 1 by default (B, L).
            inputs_embeds: word embeddings (B, L, D), instead of `input_ids`.
            **kwargs: see `TransformersKwargs`. As in other models of `transformers`, unknown ones have no effect.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`, or more positions than the model has.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids: give exactly one of input_ids and inputs_embeds")
        embedded_BLD = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=embedded_BLD, attention_mask=attention_mask)
        hidden_BLD = self.encoder(embedded_BLD, mask, position_ids=position_ids, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_BLD, pooler_output=self.pooler(hidden_BLD) if self.pooler is not None else None
        )


class D2LBertForPreTraining(D2LBertPreTrainedModel):
    """Masked language model and next-sentence prediction: d2l's `BERTModel` (d2l 15.8.6).

    Example:
        >>> import torch
        >>> from bert_snli import D2LBertConfig, D2LBertForPreTraining
        >>> config = D2LBertConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_attention_heads=2)
        >>> outputs = D2LBertForPreTraining(config)(torch.tensor([[1, 5, 2]]))
        >>> outputs.prediction_logits.shape, outputs.seq_relationship_logits.shape
        (torch.Size([1, 3, 50]), torch.Size([1, 2]))
    """

    def __init__(self, config: D2LBertConfig):
        super().__init__(config)
        self.bert = D2LBertModel(config)
        self.lm_head = D2LBertMaskedLMHead(config)
        self.nsp_head = nn.Linear(config.hidden_size, 2)
        self.post_init()

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
    ) -> BertForPreTrainingOutput:
        """Compute `prediction_logits` (B, L, V), `seq_relationship_logits` (B, 2) and the sum of the given losses.

        `labels` (B, L) are the ids to predict, −100 elsewhere. `next_sentence_label` (B,) is 1 for "is next".
        """
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
        return BertForPreTrainingOutput(
            loss=torch.stack(losses).sum() if losses else None,
            prediction_logits=prediction_BLV,
            seq_relationship_logits=relationship_B2,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class D2LBertForMaskedLM(D2LBertPreTrainedModel):
    """Masked language model without next-sentence prediction, for `pipeline("fill-mask")`.

    Example:
        >>> import torch
        >>> from bert_snli import D2LBertConfig, D2LBertForMaskedLM
        >>> config = D2LBertConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_attention_heads=2)
        >>> D2LBertForMaskedLM(config)(torch.tensor([[1, 5, 2]])).logits.shape
        torch.Size([1, 3, 50])
    """

    _keys_to_ignore_on_load_unexpected = [r"pooler", r"nsp_head"]

    def __init__(self, config: D2LBertConfig):
        super().__init__(config)
        self.bert = D2LBertModel(config, add_pooling_layer=False)
        self.lm_head = D2LBertMaskedLMHead(config)
        self.post_init()

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
        """Compute `logits` (B, L, V), and the loss if `labels` (B, L) are given: ids to predict, −100 elsewhere."""
        outputs = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        logits_BLV = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits_BLV.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(
            loss=loss, logits=logits_BLV, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class D2LBertForSequenceClassification(D2LBertPreTrainedModel):
    """Classifier of sentences or pairs: d2l's `BERTClassifier` (d2l 15.7). `config.classifier_head` names its head.

    Example:
        >>> import torch
        >>> from bert_snli import D2LBertConfig, D2LBertForSequenceClassification
        >>> config = D2LBertConfig(vocab_size=50, hidden_size=16, num_attention_heads=2, num_labels=3)
        >>> D2LBertForSequenceClassification(config)(torch.tensor([[1, 5, 2]])).logits.shape
        torch.Size([1, 3])
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
            # As in d2l, new layers start with PyTorch's default for Linear, not with N(0, initializer_range).
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
        """Compute `logits` (B, C), and the loss for `config.problem_type` if `labels` are given.

        Raises:
            ValueError: as for `D2LBertModel`, or the matching head gets no `token_type_ids`, or a mask that is not
                (B, L).
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
            loss=loss, logits=logits_BC, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


AUTO_CLASSES = {
    "AutoConfig": D2LBertConfig,
    "AutoModel": D2LBertModel,
    "AutoModelForPreTraining": D2LBertForPreTraining,
    "AutoModelForMaskedLM": D2LBertForMaskedLM,
    "AutoModelForSequenceClassification": D2LBertForSequenceClassification,
}
AUTO_MAP = {name: f"{cls.__module__.split('.')[-1]}.{cls.__name__}" for name, cls in AUTO_CLASSES.items()}
for _name, _class in AUTO_CLASSES.items():
    _class.register_for_auto_class(_name)
