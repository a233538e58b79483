"""The BERT models of *Dive into Deep Learning* (d2l.ai, section 15.7) for `transformers`.

The names in `__all__` are imported when they are first used, because PyTorch and transformers take seconds to import.
The first use of any of them registers the models with the Auto classes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_snli.data.pair_encoding import PairEncoder
    from bert_snli.data.snli import load_snli
    from bert_snli.evaluation.report import evaluate_model
    from bert_snli.finetune import finetune_model
    from bert_snli.hub import push_to_hub
    from bert_snli.modeling import (
        D2LBertConfig,
        D2LBertForMaskedLM,
        D2LBertForPreTraining,
        D2LBertForSequenceClassification,
        D2LBertModel,
        NLIPipeline,
    )
    from bert_snli.onnx_export import export_onnx
    from bert_snli.prediction import Predictor
    from bert_snli.pretrain import pretrain_model
    from bert_snli.tokenization import build_tokenizer
    from bert_snli.training.arguments import FinetuneArguments, PretrainArguments

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
    "PretrainArguments": "bert_snli.training.arguments",
    "build_tokenizer": "bert_snli.tokenization",
    "evaluate_model": "bert_snli.evaluation.report",
    "export_onnx": "bert_snli.onnx_export",
    "finetune_model": "bert_snli.finetune",
    "load_snli": "bert_snli.data.snli",
    "pretrain_model": "bert_snli.pretrain",
    "push_to_hub": "bert_snli.hub",
}
__all__ = [
    "D2LBertConfig",
    "D2LBertForMaskedLM",
    "D2LBertForPreTraining",
    "D2LBertForSequenceClassification",
    "D2LBertModel",
    "FinetuneArguments",
    "NLIPipeline",
    "PairEncoder",
    "Predictor",
    "PretrainArguments",
    "build_tokenizer",
    "evaluate_model",
    "export_onnx",
    "finetune_model",
    "load_snli",
    "pretrain_model",
    "push_to_hub",
    "__version__",
]


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
