"""The model tests of `transformers` on all our models and classifier heads."""

from __future__ import annotations

import unittest

import torch
from transformers.models.auto import modeling_auto
from transformers.testing_utils import torch_device

from bert_snli.modeling import (
    D2LBertConfig,
    D2LBertForMaskedLM,
    D2LBertForPreTraining,
    D2LBertForSequenceClassification,
    D2LBertModel,
)
from tests.conformance.upstream import ConfigTester, ModelTesterMixin, TrainingTesterMixin, skip_tests

# The tests look up here which labels a model takes and what it returns.
modeling_auto.MODEL_MAPPING_NAMES["d2l_bert"] = "D2LBertModel"
modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES["d2l_bert"] = "D2LBertForPreTraining"
modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES["d2l_bert"] = "D2LBertForMaskedLM"
modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["d2l_bert"] = "D2LBertForSequenceClassification"


class D2LBertModelTester:
    """A small model and a batch for it, as the mixins ask for them."""

    batch_size, seq_length = 13, 7
    num_hidden_layers, hidden_size, num_attention_heads = 2, 32, 4
    is_training = True

    def __init__(self, classifier_head: str, initializer_range: float = 0.02):
        self.classifier_head = classifier_head
        self.initializer_range = initializer_range

    def get_config(self) -> D2LBertConfig:
        return D2LBertConfig(
            vocab_size=99,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            max_position_embeddings=64,
            initializer_range=self.initializer_range,
            pad_token_id=0,
            classifier_head=self.classifier_head,
            classifier_hidden_size=24,
            num_labels=3,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[D2LBertConfig, dict[str, torch.Tensor]]:
        shape = (self.batch_size, self.seq_length)
        inputs = {
            "input_ids": torch.randint(1, 99, shape),
            "token_type_ids": (torch.arange(self.seq_length) >= 4).long().repeat(self.batch_size, 1),
            "attention_mask": torch.ones(shape, dtype=torch.long),
        }
        return self.get_config(), {name: tensor.to(torch_device) for name, tensor in inputs.items()}


# Name of a test, or what precedes its parameters -> why it cannot apply to our models.
NOT_APPLICABLE = {
    "test_attn_implementation_composite_models": "the model has no sub-models",
    "test_can_set_attention_dynamically_composite_model": "the model has no sub-models",
    "test_internal_model_config_and_subconfig_are_same": "the model has no sub-models",
    "test_sdpa_can_dispatch_composite_models": "the model has no sub-models",
    "test_get_text_features": "the model has only text inputs",
    "test_get_image_features": "the model has only text inputs",
    "test_get_audio_features": "the model has only text inputs",
    "test_get_video_features": "the model has only text inputs",
    "test_causal_lm_loss_honors_shift_labels": "no model generates",
    "test_encoder_decoder_loss_no_double_shift": "no model generates",
    "test_model_base_model_prefix": "no model generates",
    "test_sliding_window_mask": "attention has no window",
    "test_model_rope_scaling": "positions are learned embeddings",
    "test_model_rope_with_partial_rotation": "positions are learned embeddings",
    "test_vision_axial_rope": "positions are learned embeddings",
    "test_resize_position_vector_embeddings": "the model does not implement resize_position_embeddings",
    "test_eager_matches_batched_and_grouped_inference": "the model has no experts",
    "test_moe_models_record_router_logits": "the model has no experts",
    "test_output_router_logits_from_config": "the model has no experts",
    "test_tied_head_has_a_tp_plan_entry": "the model has no plan for tensor parallelism",
    "test_tp_plan_matches_params": "the model has no plan for tensor parallelism",
    "test_keep_in_fp32_modules": "no module stays in fp32",
    "test_can_load_from_already_mapped_keys": "no weights are renamed when they are loaded",
    "test_reverse_loading_mapping": "no weights are renamed when they are loaded",
}
BASE_MODEL_ONLY = ["test_inputs_embeds_matches_input_ids", "test_model_forward_default_config_values"]


class D2LBertTestMixin(ModelTesterMixin):
    test_can_init_all_missing_weights_before_2023 = True  # the year is read from a copyright line, which we lack
    additional_model_inputs = ["token_type_ids"]  # the matching head needs them
    classifier_head = "pooler"

    def setUp(self):
        # With the default of 0.02, attention is nearly uniform and a fault in it does not show.
        self.model_tester = D2LBertModelTester(self.classifier_head, initializer_range=0.2)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class is D2LBertForPreTraining:
            inputs["labels"] = torch.zeros_like(inputs["input_ids"])
            inputs["next_sentence_label"] = torch.zeros(self.model_tester.batch_size, dtype=torch.long)
        return inputs


@skip_tests(NOT_APPLICABLE)
class ModelTest(D2LBertTestMixin, unittest.TestCase):
    all_model_classes = (D2LBertModel, D2LBertForPreTraining, D2LBertForMaskedLM, D2LBertForSequenceClassification)


@skip_tests(NOT_APPLICABLE | dict.fromkeys(BASE_MODEL_ONLY, "it tests only the base model"))
class MlpHeadTest(D2LBertTestMixin, unittest.TestCase):
    all_model_classes = (D2LBertForSequenceClassification,)
    classifier_head = "mlp"


@skip_tests(
    NOT_APPLICABLE
    | dict.fromkeys(BASE_MODEL_ONLY, "it tests only the base model")
    | {"test_can_load_ignoring_mismatched_shapes": "it does not find the output layer in a head with dropout"}
)
class MatchingHeadTest(D2LBertTestMixin, unittest.TestCase):
    all_model_classes = (D2LBertForSequenceClassification,)
    classifier_head = "matching"


class ConfigTest(unittest.TestCase):
    def test_config(self):
        ConfigTester(self, config_class=D2LBertConfig, hidden_size=32, num_attention_heads=4).run_common_tests()


class TrainingTestMixin(TrainingTesterMixin):
    model_tester = None  # abstract in TrainingTesterMixin
    model_class: type
    classifier_head = "pooler"

    def setUp(self):
        self.model_tester = D2LBertModelTester(self.classifier_head)
        self.all_model_classes = (self.model_class,)


class MaskedLMTrainingTest(TrainingTestMixin, unittest.TestCase):
    model_class = D2LBertForMaskedLM


class PreTrainingTrainingTest(TrainingTestMixin, unittest.TestCase):
    model_class = D2LBertForPreTraining

    def _create_text_training_batch(self, batch_size, seq_length, vocab_size):
        batch = super()._create_text_training_batch(batch_size, seq_length, vocab_size)
        return {**batch, "next_sentence_label": torch.ones(batch_size, dtype=torch.long)}


class PoolerHeadTrainingTest(TrainingTestMixin, unittest.TestCase):
    model_class = D2LBertForSequenceClassification

    def _create_text_training_batch(self, batch_size, seq_length, vocab_size):
        """Two pairs that differ in all tokens, with different labels."""
        shape = (batch_size, seq_length)
        return {
            "input_ids": torch.arange(1, 1 + batch_size * seq_length).remainder(vocab_size).reshape(shape),
            "token_type_ids": (torch.arange(seq_length) >= seq_length // 2).long().expand(shape),
            "labels": torch.arange(batch_size),
        }


class MlpHeadTrainingTest(PoolerHeadTrainingTest):
    classifier_head = "mlp"


class MatchingHeadTrainingTest(PoolerHeadTrainingTest):
    classifier_head = "matching"
