"""Configuration of the BERT of *Dive into Deep Learning* (d2l.ai, sections 15.8 and 15.7).

This file travels to the hub beside the weights: it stands alone and imports nothing of `bert_snli`.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

CLASSIFIER_HEADS = ("pooler", "mlp", "matching")


class D2LBertConfig(PreTrainedConfig):
    """Sizes and rates of a `D2LBertModel`; the defaults are the book's `bert.small`.

    Names follow `BertConfig`. What is the book's own:

    - `hidden_act` is not here: the book's feed-forward network and its masked-language-model head use ReLU.
    - `tie_word_embeddings` is false and cannot be true: the masked-language-model head has its own decoder weight.
    - `classifier_head`: `"pooler"`, the pretrained `hidden` layer (Linear, tanh) under a fresh Linear, as section 15.7
      has it; or `"mlp"`, a fresh Dense(`classifier_hidden_size`, ReLU) under a Dense, as the chapter's first form had.
      `"matching"` is ours: two fresh layers on the pooled output, both sentences' mean states, their difference and
      product.
    - `max_pair_length`, `pair_truncation`: how pairs were cut when the model was fine-tuned, for whoever encodes more.
    - special-token ids have no default: they come from the checkpoint's own vocabulary.

    Raises:
        ValueError: `hidden_size` is not a multiple of `num_attention_heads`, `classifier_head` is unknown, or
            `tie_word_embeddings` is true.
    """

    model_type = "d2l_bert"

    vocab_size: int = 60_005
    hidden_size: int = 256
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 512
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = None
    classifier_head: str = "pooler"
    classifier_hidden_size: int = 256
    max_pair_length: int | None = None
    pair_truncation: str = "longest"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self._check_values()

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """Build the configuration from a dictionary, as `PreTrainedConfig.from_dict`, and check it.

        The base class sets most keyword arguments of `from_pretrained` as attributes, after `__post_init__`.
        """
        loaded = super().from_dict(config_dict, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._check_values()
        return loaded

    def _check_values(self) -> None:
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads "
                f"({self.num_attention_heads}); choose a number of heads that divides it"
            )
        if self.classifier_head not in CLASSIFIER_HEADS:
            raise ValueError(
                f"classifier_head is {self.classifier_head!r}; choose one of {', '.join(CLASSIFIER_HEADS)}"
            )
        if self.tie_word_embeddings:
            raise ValueError(
                f"tie_word_embeddings is {self.tie_word_embeddings!r}, but the decoder has its own weights; "
                "set tie_word_embeddings to False"
            )
