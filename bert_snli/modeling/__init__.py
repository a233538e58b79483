"""The D2L-BERT models and their pipeline. Importing this module registers them with `transformers`."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_d2l_bert import D2LBertConfig
from .modeling_d2l_bert import (
    D2LBertForMaskedLM,
    D2LBertForPreTraining,
    D2LBertForSequenceClassification,
    D2LBertModel,
)
from .nli_pipeline import TASK, NLIPipeline

AutoConfig.register("d2l_bert", D2LBertConfig, exist_ok=True)
AutoModel.register(D2LBertConfig, D2LBertModel, exist_ok=True)
AutoModelForPreTraining.register(D2LBertConfig, D2LBertForPreTraining, exist_ok=True)
AutoModelForMaskedLM.register(D2LBertConfig, D2LBertForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(D2LBertConfig, D2LBertForSequenceClassification, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(TASK, NLIPipeline, pt_model=AutoModelForSequenceClassification, type="text")

__all__ = [
    "D2LBertConfig",
    "D2LBertForMaskedLM",
    "D2LBertForPreTraining",
    "D2LBertForSequenceClassification",
    "D2LBertModel",
    "NLIPipeline",
]
