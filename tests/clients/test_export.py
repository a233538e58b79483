"""torch.export, torch.compile and the exporters of `transformers`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch.export import Dim
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.exporters import AutoExportConfig, AutoHfExporter, ExportedModel

from tests.support.clients import (
    PAIRS,
    assert_same_logits,
    compute_logits,
    encode,
    import_or_skip,
    load_model,
    load_tokenizer,
)

LONGER_PAIRS = [(premise * 2, hypothesis) for premise, hypothesis in PAIRS[:3]]  # another shape than `PAIRS`
PACKAGES = {"dynamo": "torch", "onnx": "onnxruntime", "openvino": "openvino", "executorch": "executorch"}
# On CPUs with AMX, OpenVINO computes in bf16 by default.
RUNNER_OPTIONS = {"openvino": {"config": {"INFERENCE_PRECISION_HINT": "f32"}}}


def test_exported_program_takes_other_batch_sizes_and_lengths(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, inputs: dict[str, torch.Tensor]
):
    model.eval()
    shape = {0: Dim("batch"), 1: Dim("length", max=model.config.max_position_embeddings)}
    program = torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, shape)).module()
    for batch in (inputs, encode(tokenizer, LONGER_PAIRS)):
        assert_same_logits(program(**batch).logits, compute_logits(model, batch), model.config)


@pytest.mark.skipif(
    not shutil.which("g++") or torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch.compile needs a C++ compiler and vector instructions",
)
def test_model_compiles_into_one_graph_for_all_shapes(matching_classifier: Path):
    model, tokenizer = load_model(matching_classifier).eval(), load_tokenizer(matching_classifier)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)  # a graph break is an error
    for pairs in (PAIRS, LONGER_PAIRS):
        inputs = encode(tokenizer, pairs)
        with torch.no_grad():
            found = compiled(**inputs).logits
        assert_same_logits(found, compute_logits(model, inputs), model.config)


@pytest.mark.parametrize("export_format", PACKAGES)
def test_exporter_of_transformers_writes_a_folder_with_the_same_logits(
    export_format: str, matching_classifier: Path, tmp_path: Path
):
    package = PACKAGES[export_format]
    import_or_skip(package, install=package)
    model, tokenizer = load_model(matching_classifier), load_tokenizer(matching_classifier)
    config = AutoExportConfig.from_dict({"export_format": export_format, "dynamic": True})
    exported = AutoHfExporter.from_config(config).export(model, encode(tokenizer), config)
    exported.save_pretrained(tmp_path)
    options = RUNNER_OPTIONS.get(export_format, {})
    loaded = ExportedModel.from_pretrained(tmp_path, trust_remote_code=True, **options)
    for pairs in (PAIRS, LONGER_PAIRS):
        inputs = encode(tokenizer, pairs)
        assert_same_logits(loaded(**inputs).logits, compute_logits(model, inputs), model.config)
