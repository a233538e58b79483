"""Load a third-party `transformers` model, for the other scripts in this folder."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bert_snli.errors import BertSnliError


def open_encoder(name_or_path: str, auto_class: Any, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model folder or Hub id with `auto_class`; return the model and its tokenizer.

    Raises:
        BertSnliError: the model does not exist, is damaged, or has other sizes than `options`.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        return auto_class.from_pretrained(name_or_path, **options), tokenizer
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise BertSnliError(
            f"{name_or_path}: cannot be opened ({reason:.300}); give a model that transformers can load"
        ) from error
