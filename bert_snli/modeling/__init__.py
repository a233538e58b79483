"""The D2L-BERT models and their pipeline. Importing this module registers them with `transformers`.

`save_pretrained` copies the other files of this folder next to the weights, so they import nothing else of `bert_snli`.
"""

import transformers
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_d2l_bert import D2LBertConfig
from .modeling_d2l_bert import (
    AUTO_CLASSES,
    D2LBertForMaskedLM,
    D2LBertForPreTraining,
    D2LBertForSequenceClassification,
    D2LBertModel,
)
from .nli_pipeline import TASK, NLIPipeline

for _name, _class in AUTO_CLASSES.items():
    _key = D2LBertConfig.model_type if _class is D2LBertConfig else D2LBertConfig
    getattr(transformers, _name).register(_key, _class, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    TASK, NLIPipeline, pt_model=transformers.AutoModelForSequenceClassification, type="text"
)

__all__ = [
    "D2LBertConfig",
    "D2LBertForMaskedLM",
    "D2LBertForPreTraining",
    "D2LBertForSequenceClassification",
    "D2LBertModel",
    "NLIPipeline",
]
