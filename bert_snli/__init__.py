"""The BERT models of *Dive into Deep Learning* (d2l.ai, section 15.7) for `transformers`.

The names in `__all__` are imported when they are first used, because PyTorch and transformers take seconds to import.
The first use of any of them registers the models with the Auto classes.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "D2LBertConfig": "bert_snli.modeling",
    "D2LBertForMaskedLM": "bert_snli.modeling",
    "D2LBertForPreTraining": "bert_snli.modeling",
    "D2LBertForSequenceClassification": "bert_snli.modeling",
    "D2LBertModel": "bert_snli.modeling",
    "FinetuneArguments": "bert_snli.training.arguments",
    "NLIPipeline": "bert_snli.modeling",
    "PairEncoder": "bert_snli.data.pair_encoding",
    "Predictor": "bert_snli.prediction",
    "PretrainArguments": "bert_snli.training.pretrain_arguments",
    "build_tokenizer": "bert_snli.tokenization",
    "evaluate_model": "bert_snli.evaluation.report",
    "export_onnx": "bert_snli.onnx_export",
    "finetune_model": "bert_snli.finetune",
    "load_snli": "bert_snli.data.snli",
    "pretrain_model": "bert_snli.pretrain",
    "push_to_hub": "bert_snli.hub",
}
__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("bert-snli")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module("bert_snli.modeling")  # registers the Auto classes
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
