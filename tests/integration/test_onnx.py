"""ONNX: the exported file computes what PyTorch computes, whoever opens it; what is not the same is not written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from bert_snli import onnx_export
from bert_snli.cli import main
from bert_snli.errors import BertSnliError
from bert_snli.finetune import finetune
from bert_snli.inference import load_classifier, load_config, load_tokenizer
from bert_snli.modeling import D2LBertForPreTraining
from bert_snli.modeling.configuration_d2l_bert import CLASSIFIER_HEADS
from bert_snli.onnx import INPUTS, ONNX_FILE, OnnxClassifier
from bert_snli.onnx_export import export_onnx, random_batch
from bert_snli.prediction import predict_pairs
from bert_snli.training.recipe import FinetuneRecipe
from tests.support.classifiers import random_pairs, save_random_classifier
from tests.support.command_line import error_line
from tests.support.without_package import run_without_package

MAX_LENGTH = 512
SEEDS = {"pooler": 0, "mlp": 0, "matching": 6}  # with which not all pairs get the same answer
SPREAD = 0.2  # of the weights: logits of single digits, as those of trained models, whose roundings are below 1e-5


@pytest.fixture(scope="module", params=CLASSIFIER_HEADS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A classifier's folder, and the folder that it was exported to."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_random_classifier(
        folder / "model", max_length=MAX_LENGTH, classifier_head=request.param, spread=SPREAD, seed=SEEDS[request.param]
    )
    export_onnx(str(model), folder / "onnx")
    return model, folder / "onnx"


def opened(folder: Path) -> OnnxClassifier:
    return OnnxClassifier(folder / ONNX_FILE, load_config(str(folder)))


def answers_of(tmp_path: Path, model: Path, *options: object) -> list[dict]:
    """What `bert-snli predict` writes for thirty pairs in small batches."""
    source, target = tmp_path / "pairs.jsonl", tmp_path / "answers.jsonl"
    source.write_text("".join(json.dumps({"premise": p, "hypothesis": h}) + "\n" for p, h in random_pairs(30)))
    command = ["predict", model, "--input_file", source, "--output_file", target, "--batch_size", 7, *options]
    assert main([str(word) for word in command]) == 0
    return [json.loads(line) for line in target.read_text().splitlines()]


@pytest.mark.parametrize(
    ("rows", "positions"), [(1, 3), (1, 4), (1, MAX_LENGTH), (2, MAX_LENGTH), (5, 17), (64, 3), (64, 64)]
)
@pytest.mark.parametrize("padded", [True, False])
def test_logits_are_pytorchs_at_every_shape(both: tuple[Path, Path], rows: int, positions: int, padded: bool):
    model = load_classifier(str(both[0]))
    batch = random_batch(rows, positions, model.config)
    if not padded:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    with torch.no_grad():
        expected = model(**batch).logits
    torch.testing.assert_close(opened(both[1])(batch), expected, rtol=0, atol=1e-5)


def test_padding_and_segments_count_as_in_the_model(both: tuple[Path, Path]):
    classifier = opened(both[1])
    batch = random_batch(4, 9, classifier.config)
    longer = {name: torch.nn.functional.pad(tensor, (0, 6)) for name, tensor in batch.items()}
    torch.testing.assert_close(classifier(longer), classifier(batch), rtol=0, atol=1e-5)
    other = {**batch, "token_type_ids": 1 - batch["token_type_ids"]}
    assert (classifier(other) - classifier(batch)).abs().max() > 0.01


def test_the_graph_has_no_sizes_and_no_paths_of_the_machine(both: tuple[Path, Path]):
    graph = onnx.load(both[1] / ONNX_FILE).graph
    axes = {
        tensor.name: [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim]
        for tensor in [*graph.input, *graph.output]
    }
    assert axes == {**dict.fromkeys(INPUTS, ["batch", "length"]), "logits": ["batch", 3]}
    assert b"modeling_d2l_bert" not in (both[1] / ONNX_FILE).read_bytes()


def test_predict_gives_the_answers_of_pytorch(both: tuple[Path, Path], tmp_path: Path):
    by_torch = answers_of(tmp_path, both[0])
    assert len({answer["label"] for answer in by_torch}) > 1
    for options in ([], ["--backend", "onnx"]):
        by_onnx = answers_of(tmp_path, both[1], *options)
        for ours, theirs in zip(by_onnx, by_torch, strict=True):
            assert (ours["premise"], ours["label"]) == (theirs["premise"], theirs["label"])
            assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-5)


def test_evaluate_gives_the_figures_of_pytorch(both: tuple[Path, Path], corpus: Path, tmp_path: Path):
    reports = []
    for model, name in zip(both, ("torch", "onnx"), strict=True):
        command = ["evaluate", model, "--dataset_name_or_path", corpus, "--output_dir", tmp_path / name]
        assert main([str(word) for word in command]) == 0
        reports.append(json.loads((tmp_path / name / "eval_results_test.json").read_text()))
        assert reports[-1]["backend"] == name
    assert reports[1]["confusion_matrix"] == reports[0]["confusion_matrix"]
    assert reports[1]["loss"] == pytest.approx(reports[0]["loss"], abs=1e-5)


def test_the_folder_opens_without_this_package(both: tuple[Path, Path], tmp_path: Path):
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
    expected = predict_pairs(load_classifier(str(both[0])), load_tokenizer(str(both[0])), pairs)
    answers = run_without_package(script, tmp_path, folder=str(both[1]), pairs=pairs)
    assert answers == [next(iter(scores)) for scores in expected]


@pytest.mark.slow
def test_int8_is_smaller_and_close(both: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture):
    target = tmp_path / "int8"
    command = ["export", both[0], "--format", "onnx", "--quantize", "int8", "--output_dir", target]
    assert main([str(word) for word in command]) == 0
    assert "% of fp32's" in capsys.readouterr().out
    graph = onnx.load(target / ONNX_FILE).graph
    floats = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert not [tensor.name for tensor in floats if "word_embeddings" in tensor.name and len(tensor.dims) > 1]
    in_head = {"pooler": 2, "mlp": 2, "matching": 3}[load_config(str(target)).classifier_head]
    assert sum(node.op_type == "MatMulInteger" for node in graph.node) == 6 * 2 + in_head  # six in each layer
    by_torch, by_onnx = answers_of(tmp_path, both[0]), answers_of(tmp_path, target)
    scores = [[[*map(answer["scores"].get, ("entailment", "neutral"))] for answer in a] for a in (by_torch, by_onnx)]
    assert 1e-5 < np.abs(np.subtract(*scores)).mean() < 0.05
    assert sum(o["label"] == t["label"] for o, t in zip(by_onnx, by_torch, strict=True)) >= 27


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_written(
    both: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    right = onnx_export.to_onnx

    def wrong(model):
        with torch.no_grad():
            next(model.bert.encoder.parameters()).mul_(1.001)
        return right(model)

    monkeypatch.setattr(onnx_export, "to_onnx", wrong)
    command = ["export", both[0], "--format", "onnx", "--output_dir", tmp_path / "out"]
    assert "from PyTorch's, more than" in error_line(command, capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_bfloat16_is_exported_in_fp32(tmp_path: Path):
    model = save_random_classifier(tmp_path / "model", spread=SPREAD)
    load_classifier(str(model)).to(torch.bfloat16).save_pretrained(model)
    assert load_classifier(str(model)).dtype == torch.bfloat16
    assert export_onnx(str(model), tmp_path / "out").difference <= 1e-5


def test_a_folder_with_both_is_pytorchs_unless_asked(
    both: tuple[Path, Path],
    model_folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture,
):
    pair = ["--premise", "a man", "--hypothesis", "a dog"]
    (model_folder / ONNX_FILE).write_text("no graph")
    assert main(["predict", str(model_folder), *pair]) == 0
    command = ["predict", model_folder, *pair, "--backend", "onnx"]
    assert f"{ONNX_FILE}: ONNX Runtime cannot open it" in error_line(command, capsys)
    shutil.copy(both[1] / ONNX_FILE, model_folder)
    assert main([str(word) for word in command]) == 0


def test_a_graph_of_another_model_is_named(model_folder: Path, capsys: pytest.CaptureFixture):  # noqa: F811
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("pixels", "logits")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["pixels"], ["logits"])], "g", values[:1], values[1:])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8),
        model_folder / ONNX_FILE,
    )
    command = ["predict", model_folder, "--premise", "a", "--hypothesis", "b", "--backend", "onnx"]
    assert "its inputs are pixels" in error_line(command, capsys)


def test_the_threads_are_those_of_pytorch(both: tuple[Path, Path]):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert opened(both[1]).session.get_session_options().intra_op_num_threads == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "d2l-torch", "--quantize", "int8"], "--quantize int8: only for --format onnx"),
        (["--format", "onnx", "--quantize", "int4"], "invalid choice: 'int4'"),
        (["--format", "onnx", "--output_dir", "MODEL"], "is the model itself; name another folder"),
    ],
)
def test_a_mistake_in_export_is_one_line(
    options: list[str],
    message: str,
    model_folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    words = [str(model_folder) if word == "MODEL" else word for word in options]
    assert message in error_line(["export", model_folder, "--output_dir", tmp_path / "out", *words], capsys)
    assert not (tmp_path / "out").exists()


def test_only_a_fine_tuned_model_is_exported(
    model_folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    command = ["export", model_folder, "--format", "onnx", "--output_dir", tmp_path / "out"]
    D2LBertForPreTraining(load_config(str(model_folder))).save_pretrained(model_folder)
    assert "without a trained classifier; fine-tune it first" in error_line(command, capsys)
    (model_folder / "config.json").write_text('{"model_type": "bert"}')
    assert "a model of type 'bert'" in error_line(command, capsys)
    assert not (tmp_path / "out").exists()


def test_a_backend_needs_its_file(both: tuple[Path, Path], capsys: pytest.CaptureFixture):
    pair = ["--premise", "a", "--hypothesis", "b"]
    model, exported = both
    error = error_line(["predict", model, *pair, "--backend", "onnx"], capsys)
    assert f"write one: bert-snli export {model} --format onnx" in error
    assert "holds model.onnx alone" in error_line(["predict", exported, *pair, "--backend", "torch"], capsys)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_the_extra_of_a_missing_package_is_named(
    package: str,
    model_folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "bert_snli.onnx_export")
    command = ["export", model_folder, "--format", "onnx", "--output_dir", tmp_path / "out"]
    assert "pip install 'bert-snli[onnx]'" in error_line(command, capsys)
    if package == "onnxruntime":
        (model_folder / ONNX_FILE).touch()
        command = ["predict", model_folder, "--premise", "a", "--hypothesis", "b", "--backend", "onnx"]
        assert "onnxruntime is not installed; pip install 'bert-snli[onnx]'" in error_line(command, capsys)


def test_an_export_alone_is_no_model_to_train_serve_push_or_export(
    both: tuple[Path, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    commands = [
        ["export", both[1], "--format", "onnx", "--output_dir", tmp_path / "out"],
        ["serve", both[1]],
        ["push", both[1], "--repo_id", "user/name", "--dry_run", "--output_dir", tmp_path / "out"],
    ]
    for command in commands:
        assert "an ONNX export, which predict and evaluate alone can use" in error_line(command, capsys)
    with pytest.raises(BertSnliError, match="an ONNX export"):
        finetune(FinetuneRecipe(str(both[1]), str(corpus), str(tmp_path / "out")))
    assert list(tmp_path.iterdir()) == []
