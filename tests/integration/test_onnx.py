"""ONNX export: the exported model gives the outputs of PyTorch, and an export that does not is not written."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch

from bert_snli import onnx_export
from bert_snli.cli import main
from bert_snli.errors import BertSnliError
from bert_snli.files import ONNX_FILE, WEIGHTS, sha256_of_file
from bert_snli.finetune import finetune_model
from bert_snli.inference import OnnxClassifier, load_classifier, load_config, load_tokenizer, open_classifier
from bert_snli.modeling import D2LBertForPreTraining
from bert_snli.modeling.configuration_d2l_bert import CLASSIFIER_HEADS
from bert_snli.onnx_export import export_onnx, random_batch
from bert_snli.prediction import Predictor
from bert_snli.training.arguments import FinetuneArguments
from tests.support.classifiers import random_pairs, save_random_classifier, write_pairs
from tests.support.command_line import error_line
from tests.support.without_package import run_without_package

MAX_LENGTH = 512
SEEDS = {"pooler": 0, "mlp": 0, "matching": 6}  # with these seeds, the predictions differ between pairs
SPREAD = 0.2  # of the weights: gives logits below 10, as in trained models, with rounding errors below 1e-5


class Exported(NamedTuple):
    """The folders of a classifier and of its export."""

    model: Path
    onnx: Path


@pytest.fixture(scope="module")
def export_classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Return a function that exports a classifier with the given head, once for all tests."""

    @cache
    def export(head: str) -> Exported:
        folder = tmp_path_factory.mktemp(head)
        model = save_random_classifier(
            folder / "model", max_length=MAX_LENGTH, classifier_head=head, spread=SPREAD, seed=SEEDS[head]
        )
        export_onnx(str(model), folder / "onnx")
        return Exported(model, folder / "onnx")

    return export


@pytest.fixture(scope="module", params=CLASSIFIER_HEADS)
def exported(request: pytest.FixtureRequest, export_classifier: Callable[[str], Exported]) -> Exported:
    """A classifier with each head, and its export."""
    return export_classifier(request.param)


@pytest.fixture
def exported_matching(export_classifier: Callable[[str], Exported]) -> Exported:
    """The classifier with the default head, for behaviour that does not depend on the head."""
    return export_classifier("matching")


def open_onnx(folder: Path) -> OnnxClassifier:
    return OnnxClassifier(folder / ONNX_FILE, load_config(str(folder)))


def predict_to_file(tmp_path: Path, model: Path, *options: object) -> list[dict]:
    """Run `bert-snli predict` on thirty pairs in small batches and return the rows that it writes."""
    source, target = tmp_path / "pairs.jsonl", tmp_path / "predictions.jsonl"
    write_pairs(source, random_pairs(30))
    command = ["predict", model, "--input_file", source, "--output_file", target, "--batch_size", 7, *options]
    assert main([str(word) for word in command]) == 0
    return [json.loads(line) for line in target.read_text().splitlines()]


@pytest.mark.parametrize(
    ("rows", "positions"), [(1, 3), (1, 4), (1, MAX_LENGTH), (2, MAX_LENGTH), (5, 17), (64, 3), (64, 64)]
)
@pytest.mark.parametrize("padded", [True, False])
def test_logits_equal_pytorch_for_each_shape(exported: Exported, rows: int, positions: int, padded: bool):
    model = load_classifier(str(exported.model))
    batch = random_batch(rows, positions, model.config)
    if not padded:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    with torch.no_grad():
        expected = model(**batch).logits
    torch.testing.assert_close(open_onnx(exported.onnx)(batch), expected, rtol=0, atol=1e-5)


def test_padding_does_not_change_logits_and_segments_do(exported: Exported):
    classifier = open_onnx(exported.onnx)
    batch = random_batch(4, 9, classifier.config)
    longer = {name: torch.nn.functional.pad(tensor, (0, 6)) for name, tensor in batch.items()}
    torch.testing.assert_close(classifier(longer), classifier(batch), rtol=0, atol=1e-5)
    other = {**batch, "token_type_ids": 1 - batch["token_type_ids"]}
    assert (classifier(other) - classifier(batch)).abs().max() > 0.01


def test_graph_has_dynamic_axes_and_no_source_paths(exported_matching: Exported):
    graph = onnx.load(exported_matching.onnx / ONNX_FILE).graph
    axes = {
        tensor.name: [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim]
        for tensor in [*graph.input, *graph.output]
    }
    assert axes == {
        **dict.fromkeys(["input_ids", "token_type_ids", "attention_mask"], ["batch", "length"]),
        "logits": ["batch", 3],
    }
    assert b"modeling_d2l_bert" not in (exported_matching.onnx / ONNX_FILE).read_bytes()


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_graph_names_the_weights_that_it_was_exported_from(quantize: str | None, model_folder: Path, tmp_path: Path):
    export_onnx(str(model_folder), tmp_path / "out", quantize=quantize)
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "out" / ONNX_FILE).metadata_props}
    assert metadata["weights_sha256"] == sha256_of_file(model_folder / WEIGHTS)


def test_predict_gives_the_predictions_of_pytorch(exported: Exported, tmp_path: Path):
    by_torch = predict_to_file(tmp_path, exported.model)
    assert len({row["label"] for row in by_torch}) > 1
    for options in ([], ["--backend", "onnx"]):
        by_onnx = predict_to_file(tmp_path, exported.onnx, *options)
        for found, expected in zip(by_onnx, by_torch, strict=True):
            assert (found["premise"], found["label"]) == (expected["premise"], expected["label"])
            assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)


def test_evaluate_gives_the_metrics_of_pytorch(exported: Exported, corpus: Path, tmp_path: Path):
    reports = []
    for model, name in zip(exported, ("torch", "onnx"), strict=True):
        command = ["evaluate", model, "--dataset_name_or_path", corpus, "--output_dir", tmp_path / name]
        assert main([str(word) for word in command]) == 0
        reports.append(json.loads((tmp_path / name / "eval_results_test.json").read_text()))
        assert reports[-1]["backend"] == name
    assert reports[1]["confusion_matrix"] == reports[0]["confusion_matrix"]
    assert reports[1]["loss"] == pytest.approx(reports[0]["loss"], abs=1e-5)


@pytest.mark.slow
def test_export_runs_in_a_process_without_the_package(exported_matching: Exported, tmp_path: Path):
    script = """
import onnxruntime
from transformers import AutoConfig, AutoTokenizer

config = AutoConfig.from_pretrained(arguments["folder"], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(arguments["folder"], trust_remote_code=True)
session = onnxruntime.InferenceSession(arguments["folder"] + "/model.onnx")
inputs = tokenizer(*map(list, zip(*arguments["pairs"])), padding=True, return_tensors="np")
logits = session.run(["logits"], dict(inputs))[0]
print(json.dumps([config.id2label[number] for number in logits.argmax(1).tolist()]))
"""
    pairs = random_pairs(30)
    model = str(exported_matching.model)
    expected = Predictor(load_classifier(model), load_tokenizer(model))(pairs)
    predicted = run_without_package(script, tmp_path, folder=str(exported_matching.onnx), pairs=pairs)
    assert predicted == [next(iter(scores)) for scores in expected]


@pytest.mark.slow
def test_int8_export_is_quantized_and_close_to_fp32(exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture):
    target = tmp_path / "int8"
    command = ["export", exported.model, "--format", "onnx", "--quantize", "int8", "--output_dir", target]
    assert main([str(word) for word in command]) == 0
    assert "% of fp32's" in capsys.readouterr().out
    graph = onnx.load(target / ONNX_FILE).graph
    floats = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert not [tensor.name for tensor in floats if "word_embeddings" in tensor.name and len(tensor.dims) > 1]
    in_head = {"pooler": 2, "mlp": 2, "matching": 3}[load_config(str(target)).classifier_head]
    assert sum(node.op_type == "MatMulInteger" for node in graph.node) == 6 * 2 + in_head  # six in each of two layers
    by_torch, by_onnx = predict_to_file(tmp_path, exported.model), predict_to_file(tmp_path, target)
    scores = [[[*map(row["scores"].get, ("entailment", "neutral"))] for row in rows] for rows in (by_torch, by_onnx)]
    assert 1e-5 < np.abs(np.subtract(*scores)).mean() < 0.05
    assert sum(o["label"] == t["label"] for o, t in zip(by_onnx, by_torch, strict=True)) >= 27


def test_export_that_differs_from_pytorch_is_not_written(
    exported_matching: Exported, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    graph = onnx.load(exported_matching.onnx / ONNX_FILE)
    tensor = next(tensor for tensor in graph.graph.initializer if "word_embeddings" in tensor.name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name))
    monkeypatch.setattr(onnx_export, "to_onnx", lambda model: graph)
    command = ["export", exported_matching.model, "--format", "onnx", "--output_dir", tmp_path / "out"]
    assert "from PyTorch's, more than" in error_line(command, capsys)
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_model_is_exported_in_fp32(tmp_path: Path):
    model = save_random_classifier(tmp_path / "model", spread=SPREAD)
    load_classifier(str(model)).to(torch.bfloat16).save_pretrained(model)
    assert load_classifier(str(model)).dtype == torch.bfloat16
    assert export_onnx(str(model), tmp_path / "out").difference <= 1e-5


def test_predict_uses_pytorch_by_default_and_onnx_on_request(
    exported_matching: Exported, tmp_path: Path, capsys: pytest.CaptureFixture
):
    folder = tmp_path / "model"
    shutil.copytree(exported_matching.model, folder)
    (folder / ONNX_FILE).write_text("not a graph")
    pair = ["--premise", "a man", "--hypothesis", "a dog"]
    assert main(["predict", str(folder), *pair]) == 0
    by_torch = capsys.readouterr().out
    command = ["predict", folder, *pair, "--backend", "onnx"]
    assert f"its {ONNX_FILE} cannot be loaded (InvalidProtobuf" in error_line(command, capsys)
    shutil.copy(exported_matching.onnx / ONNX_FILE, folder)
    assert main([str(word) for word in command]) == 0
    assert capsys.readouterr().out == by_torch


def test_onnx_runtime_uses_the_thread_count_of_pytorch(exported_matching: Exported):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert open_onnx(exported_matching.onnx).session.get_session_options().intra_op_num_threads == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "d2l-torch", "--quantize", "int8"], "--quantize int8: only for --format onnx"),
        (["--format", "onnx", "--quantize", "int4"], "invalid choice: 'int4'"),
        (["--format", "onnx", "--output_dir", "MODEL"], "is the model folder itself; give another folder"),
    ],
)
def test_wrong_export_option_is_refused_in_one_line(
    options: list[str],
    message: str,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    words = [str(model_folder) if word == "MODEL" else word for word in options]
    assert message in error_line(["export", model_folder, "--output_dir", tmp_path / "out", *words], capsys)
    assert not (tmp_path / "out").exists()


def test_unknown_quantization_and_backend_are_refused_in_python(model_folder: Path, tmp_path: Path):
    with pytest.raises(BertSnliError, match="quantize fp16: choose int8"):
        export_onnx(str(model_folder), tmp_path / "out", quantize="fp16")
    with pytest.raises(BertSnliError, match="backend tensorrt: choose torch or onnx"):
        open_classifier(str(model_folder), "tensorrt")
    assert not (tmp_path / "out").exists()


def test_model_without_a_trained_classifier_is_refused(
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    command = ["export", model_folder, "--format", "onnx", "--output_dir", tmp_path / "out"]
    D2LBertForPreTraining(load_config(str(model_folder))).save_pretrained(model_folder)
    assert "without a trained classifier; fine-tune it first" in error_line(command, capsys)
    (model_folder / "config.json").write_text('{"model_type": "bert"}')
    assert "a model of type 'bert'" in error_line(command, capsys)
    assert not (tmp_path / "out").exists()


def test_backend_without_its_file_is_refused(exported_matching: Exported, capsys: pytest.CaptureFixture):
    pair = ["--premise", "a", "--hypothesis", "b"]
    model, onnx_folder = exported_matching
    error = error_line(["predict", model, *pair, "--backend", "onnx"], capsys)
    assert f"--backend onnx: no model.onnx in {model}; export the model first" in error
    assert "has no PyTorch weights, only model.onnx" in error_line(
        ["predict", onnx_folder, *pair, "--backend", "torch"], capsys
    )


class MissingPackage(MetaPathFinder):
    """Makes the import of a package fail as if it were not installed."""

    def __init__(self, package: str):
        self.package = package

    def find_spec(self, fullname, path=None, target=None):
        if fullname == self.package:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_package_error_names_the_extra(
    package: str,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    for module in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [MissingPackage(package), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "bert_snli.onnx_export")
    command = ["export", model_folder, "--format", "onnx", "--output_dir", tmp_path / "out"]
    assert "pip install 'bert-snli[onnx]'" in error_line(command, capsys)
    if package == "onnxruntime":
        (model_folder / ONNX_FILE).touch()
        command = ["predict", model_folder, "--premise", "a", "--hypothesis", "b", "--backend", "onnx"]
        assert "onnxruntime is not installed; pip install 'bert-snli[onnx]'" in error_line(command, capsys)


def test_export_cannot_be_exported_served_pushed_or_finetuned(
    exported_matching: Exported, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    commands = [
        ["export", exported_matching.onnx, "--format", "onnx", "--output_dir", tmp_path / "out"],
        ["serve", exported_matching.onnx],
        ["push", exported_matching.onnx, "--repo_id", "user/name", "--dry_run", "--output_dir", tmp_path / "out"],
    ]
    for command in commands:
        assert "has no PyTorch weights, only model.onnx, which predict and evaluate can run" in error_line(
            command, capsys
        )
    with pytest.raises(BertSnliError, match="has no PyTorch weights, only model.onnx"):
        finetune_model(FinetuneArguments(str(exported_matching.onnx), str(corpus), str(tmp_path / "out")))
    assert list(tmp_path.iterdir()) == []
