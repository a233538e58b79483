"""How the scripts beside this one open a model of `transformers` that somebody else made."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bert_snli.errors import BertSnliError


def open_encoder(name_or_path: str, auto_class: Any, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that `auto_class` makes of a folder or a name on the hub, and its tokenizer.

    Raises:
        BertSnliError: there is none, it is damaged, or it has other sizes than `options` ask for.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        return auto_class.from_pretrained(name_or_path, **options), tokenizer
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise BertSnliError(
            f"{name_or_path}: cannot be opened ({reason:.300}); give a model that transformers opens"
        ) from error
