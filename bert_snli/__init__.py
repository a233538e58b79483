"""The BERT models of *Dive into Deep Learning* (d2l.ai, section 15.7) for `transformers`.

The names in `__all__` are imported when they are first used, because PyTorch and transformers take seconds to import.
The first use of any of them registers the models with the Auto classes.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_snli.data.pair_encoding import PairEncoder as PairEncoder
    from bert_snli.data.snli import load_snli as load_snli
    from bert_snli.errors import BertSnliError as BertSnliError
    from bert_snli.errors import Stopped as Stopped
    from bert_snli.evaluation.report import evaluate_model as evaluate_model
    from bert_snli.finetune import finetune_model as finetune_model
    from bert_snli.hub import push_to_hub as push_to_hub
    from bert_snli.modeling import D2LBertConfig as D2LBertConfig
    from bert_snli.modeling import D2LBertForMaskedLM as D2LBertForMaskedLM
    from bert_snli.modeling import D2LBertForPreTraining as D2LBertForPreTraining
    from bert_snli.modeling import D2LBertForSequenceClassification as D2LBertForSequenceClassification
    from bert_snli.modeling import D2LBertModel as D2LBertModel
    from bert_snli.modeling import NLIPipeline as NLIPipeline
    from bert_snli.onnx_export import export_onnx as export_onnx
    from bert_snli.prediction import Predictor as Predictor
    from bert_snli.pretrain import pretrain_model as pretrain_model
    from bert_snli.tokenization import build_tokenizer as build_tokenizer
    from bert_snli.training.arguments import FinetuneArguments as FinetuneArguments
    from bert_snli.training.arguments import PretrainArguments as PretrainArguments
    from bert_snli.training.run import TrainingResult as TrainingResult

_MODULES = {
    "BertSnliError": "errors",
    "D2LBertConfig": "modeling",
    "D2LBertForMaskedLM": "modeling",
    "D2LBertForPreTraining": "modeling",
    "D2LBertForSequenceClassification": "modeling",
    "D2LBertModel": "modeling",
    "FinetuneArguments": "training.arguments",
    "NLIPipeline": "modeling",
    "PairEncoder": "data.pair_encoding",
    "Predictor": "prediction",
    "PretrainArguments": "training.arguments",
    "Stopped": "errors",
    "TrainingResult": "training.run",
    "build_tokenizer": "tokenization",
    "evaluate_model": "evaluation.report",
    "export_onnx": "onnx_export",
    "finetune_model": "finetune",
    "load_snli": "data.snli",
    "pretrain_model": "pretrain",
    "push_to_hub": "hub",
}
__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("bert-snli")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module("bert_snli.modeling")  # registers the Auto classes
    return getattr(importlib.import_module(f"bert_snli.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
