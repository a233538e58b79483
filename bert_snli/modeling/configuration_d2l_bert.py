"""Configuration of the BERT of *Dive into Deep Learning* (d2l.ai, sections 15.8 and 15.7)."""

from transformers import PreTrainedConfig

CLASSIFIER_HEADS = ("pooler", "mlp", "matching")


class D2LBertConfig(PreTrainedConfig):
    """Configuration of the D2L-BERT models, with the names of `BertConfig`; the defaults are d2l's `bert.small`.

    Special-token ids have no default, because they depend on the vocabulary. There is no `hidden_act`: d2l uses ReLU.

    Args:
        classifier_head: `"pooler"`, the pretrained `hidden` layer (Linear, tanh) and a new Linear, as in section 15.7;
            `"mlp"`, a new Linear(`classifier_hidden_size`), ReLU and Linear, as in an older edition of the chapter; or
            `"matching"`, two new layers that compare the sentences (`D2LBertMatchingHead`), which d2l does not have.
        max_pair_length: maximum length of a pair in fine-tuning, in tokens.
        pair_truncation: how longer pairs were truncated in fine-tuning.
        tie_word_embeddings: must be false, because the masked-language-model head has its own decoder weight.

    Raises:
        ValueError: `hidden_size` is not a multiple of `num_attention_heads`, `classifier_head` is unknown, or
            `tie_word_embeddings` is true.

    Example:
        >>> from bert_snli import D2LBertConfig
        >>> D2LBertConfig(vocab_size=100, classifier_head="matching").hidden_size
        256
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
        # The base class sets most keyword arguments of `from_pretrained` as attributes after `__post_init__`.
        loaded = super().from_dict(config_dict, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._check_values()
        return loaded

    def _check_values(self) -> None:
        num_heads = self.num_attention_heads
        if num_heads < 1 or self.hidden_size % num_heads:
            what = f"hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads ({num_heads})"
            raise ValueError(f"{what}; choose a divisor of hidden_size")
        if self.classifier_head not in CLASSIFIER_HEADS:
            allowed = ", ".join(CLASSIFIER_HEADS)
            raise ValueError(f"classifier_head {self.classifier_head!r}: is unknown; choose one of {allowed}")
        if self.tie_word_embeddings:
            what = f"tie_word_embeddings {self.tie_word_embeddings!r}: the decoder has its own weights"
            raise ValueError(f"{what}; set tie_word_embeddings to False")
