"""How the scripts beside this one open an encoder of `transformers`."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from bert_snli.errors import BertSnliError


def open_encoder(name_or_path: str, model_class: Any, **options: Any) -> tuple[Any, Any]:
    """Its model, as one of `model_class`, and its tokenizer.

    Raises:
        BertSnliError: there is no such model, here or on the hub, or it cannot be read.
    """
    try:
        return model_class.from_pretrained(name_or_path, **options), AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BertSnliError(f"{name_or_path}: no encoder can be opened there ({reason}); give another") from error
