"""Conversion and export: exact round trips, and one-line errors that leave no files behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from bert_snli.cli import main
from bert_snli.modeling import (
    D2LBertConfig,
    D2LBertForMaskedLM,
    D2LBertForPreTraining,
    D2LBertForSequenceClassification,
)
from conversion.checkpoint import read_checkpoint
from conversion.convert import convert_checkpoint
from conversion.d2l_layout import CLASSIFIER, MLP_CLASSIFIER, PRETRAINING, name_map
from conversion.export import export_checkpoint
from tests.support.checkpoints import change_state_dict, save_d2l_checkpoint, small_vocabulary
from tests.support.command_line import error_line
from tests.support.d2l_reference import ReferenceBERT, ReferenceClassifier
from tests.support.mxnet_writer import rename_to_mxnet, write_v3
from tests.support.real_data import SHARED, real_data
from tests.support.tolerances import D2L_TOLERANCE, rounding

NUM_ATTENTION_HEADS = {"torch-tiny": 3, "mxnet-tiny": 3}
CHECKPOINTS = (
    "torch-small",
    "torch-small-sorted-vocab",
    "torch-small-cuda-legacy",
    "torch-small-lowvar",
    "torch-tiny",
    "torch-snli",
    "mxnet-small",
    "mxnet-tiny",
)


def read_params(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a PyTorch file with PyTorch."""
    state_dict = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.detach().numpy() for name, tensor in state_dict.items()}


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("model_kind", [PRETRAINING, CLASSIFIER, MLP_CLASSIFIER])
@pytest.mark.parametrize("side", ["pytorch", "mxnet", "hugging_face"])
def test_name_map_has_no_duplicate_names(model_kind: str, side: str):
    names = [name for entry in name_map(model_kind, num_blocks=2) if (name := getattr(entry, side))]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("format", ["d2l-torch", "d2l-mxnet"])
def test_round_trip_is_bit_exact(format: str, dtype: torch.dtype, reference_bert: ReferenceBERT, tmp_path: Path):
    source = save_d2l_checkpoint(tmp_path / "d2l", reference_bert.to(dtype).state_dict(), small_vocabulary())
    convert_checkpoint(source, tmp_path / "model", num_attention_heads=2)
    assert D2LBertForPreTraining.from_pretrained(tmp_path / "model").dtype == dtype
    export_checkpoint(tmp_path / "model", tmp_path / "back", format=format)
    if format == "d2l-mxnet":  # and from MXNet's format to PyTorch's
        convert_checkpoint(tmp_path / "back", tmp_path / "again", num_attention_heads=2)
        export_checkpoint(tmp_path / "again", tmp_path / "back", format="d2l-torch", overwrite_output_dir=True)
    assert_same_bits(read_params(tmp_path / "back" / "pretrained.params"), read_params(source / "pretrained.params"))
    assert json.loads((tmp_path / "back" / "vocab.json").read_text()) == small_vocabulary()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_round_trip_of_real_checkpoint_is_bit_exact(name: str, tmp_path: Path):
    source = real_data(f"checkpoints/{name}")
    converted = convert_checkpoint(source, tmp_path / "model", num_attention_heads=NUM_ATTENTION_HEADS.get(name))
    config = D2LBertConfig.from_pretrained(tmp_path / "model")
    assert max(difference.in_float64 for difference in converted.proof) <= rounding(config, torch.float64)
    assert max(difference.in_model_dtype for difference in converted.proof) <= D2L_TOLERANCE
    export_checkpoint(
        tmp_path / "model", tmp_path / "back", format="d2l-mxnet" if name.startswith("mxnet") else "d2l-torch"
    )
    exported, original = (read_checkpoint(folder / "pretrained.params") for folder in (tmp_path / "back", source))
    assert_same_bits(exported.arrays, original.arrays)


def test_pytorch_and_mxnet_checkpoints_of_one_model_convert_to_same_files(tmp_path: Path):
    for name in ("torch-small", "mxnet-small"):
        convert_checkpoint(real_data(f"checkpoints/{name}"), tmp_path / name)
        convert_checkpoint(SHARED / "checkpoints" / name / "classifier.params", tmp_path / f"{name}-classifier")
    for ending in ("", "-classifier"):
        for file in ("model.safetensors", "config.json", "tokenizer.json"):
            torch_file, mxnet_file = (tmp_path / f"{name}-small{ending}" / file for name in ("torch", "mxnet"))
            assert torch_file.read_bytes() == mxnet_file.read_bytes(), file


def test_exported_state_dict_loads_into_d2l_classes(reference_bert: ReferenceBERT, tmp_path: Path):
    torch.manual_seed(1)
    classifier = ReferenceClassifier(reference_bert)
    for name, net in {"pretraining": reference_bert, "classifier": classifier}.items():
        source = save_d2l_checkpoint(tmp_path / name, net.state_dict(), small_vocabulary())
        convert_checkpoint(source, tmp_path / f"{name}-model", num_attention_heads=2)
        export_checkpoint(tmp_path / f"{name}-model", tmp_path / f"{name}-back", format="d2l-torch")
        state_dict = torch.load(tmp_path / f"{name}-back" / "pretrained.params")
        expected = {key: value.numpy() for key, value in net.state_dict().items()}
        assert_same_bits({key: value.numpy() for key, value in state_dict.items()}, expected)
        net.load_state_dict(state_dict)  # strict


def mlp_classifier_weights(bert: ReferenceBERT) -> dict[str, torch.Tensor]:
    """Return the weights of the classifier of d2l's first edition, with PyTorch's names."""
    hidden, output = torch.nn.Linear(16, 12), torch.nn.Linear(12, 3)
    state = {f"bert.{name}": value for name, value in bert.state_dict().items()}
    for number, layer in ((0, hidden), (2, output)):
        state.update({f"classifier.{number}.{name}": value for name, value in layer.state_dict().items()})
    return state


@pytest.mark.parametrize("framework", ["pytorch", "mxnet"])
def test_mlp_classifier_converts(framework: str, reference_bert: ReferenceBERT, tmp_path: Path, capsys):
    state = mlp_classifier_weights(reference_bert)
    source = save_d2l_checkpoint(tmp_path / "d2l", state, small_vocabulary())
    if framework == "mxnet":
        write_v3(source / "pretrained.params", rename_to_mxnet({n: v.numpy() for n, v in state.items()}))
    converted = convert_checkpoint(source, tmp_path / "model", num_attention_heads=2)
    dropped = {record["source"]["name"].split(".")[1] for record in converted.tensors if record["target"] is None}
    assert dropped == {"hidden", "mlm", "nsp"}
    model = D2LBertForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokens = torch.tensor([[3, 7, 4, 9, 4]])
    with torch.no_grad():
        cls = reference_bert.encoder(tokens, torch.zeros_like(tokens), None)[:, 0]
        hidden = torch.relu(cls @ state["classifier.0.weight"].T + state["classifier.0.bias"])
        expected = hidden @ state["classifier.2.weight"].T + state["classifier.2.bias"]
        torch.testing.assert_close(model(tokens).logits, expected)
    assert main(["verify", str(tmp_path / "model")]) == 0
    assert main(["export", str(tmp_path / "model"), "--format", "d2l-torch", "--output_dir", str(tmp_path / "b")]) == 2
    assert "has no pretraining layers, which d2l's mlp classifier has; export the model" in capsys.readouterr().err


def test_data_parallel_checkpoint_with_views_and_parameters_converts(reference_bert: ReferenceBERT, tmp_path: Path):
    state = {f"module.{name}": value for name, value in reference_bert.state_dict(keep_vars=True).items()}
    name = "module.encoder.blks.0.ffn.dense1.weight"
    state[name] = state[name].detach().T.contiguous().T
    assert not state[name].is_contiguous() and isinstance(state["module.hidden.0.bias"], torch.nn.Parameter)
    source = save_d2l_checkpoint(tmp_path / "d2l", state, small_vocabulary())
    converted = convert_checkpoint(source, tmp_path / "model", num_attention_heads=2)
    assert converted.tensors[0]["source"]["name"] == "module.encoder.token_embedding.weight"
    export_checkpoint(tmp_path / "model", tmp_path / "back", format="d2l-torch")
    plain = {name.removeprefix("module."): value.detach().numpy() for name, value in state.items()}
    assert_same_bits(read_params(tmp_path / "back" / "pretrained.params"), plain)


def test_mixed_dtypes_convert_to_widest_dtype(reference_bert: ReferenceBERT, tmp_path: Path):
    state = reference_bert.state_dict()
    state["hidden.0.bias"] = state["hidden.0.bias"].double()
    state["nsp.output.bias"] = state["nsp.output.bias"].bfloat16()
    source = save_d2l_checkpoint(tmp_path / "d2l", state, small_vocabulary())
    convert_checkpoint(source, tmp_path / "model", num_attention_heads=2)
    export_checkpoint(tmp_path / "model", tmp_path / "back", format="d2l-torch")
    for name, value in torch.load(tmp_path / "back" / "pretrained.params").items():
        assert value.dtype == torch.float64 and torch.equal(value, state[name].double()), name


def test_vocab_option_replaces_missing_vocabulary(d2l_checkpoint: Path, tmp_path: Path, capsys):
    (d2l_checkpoint / "vocab.json").rename(tmp_path / "tokens.json")
    params = d2l_checkpoint / "pretrained.params"
    command = ["convert", str(params), "--num_attention_heads", "2", "--output_dir", str(tmp_path / "model")]
    assert main(command) == 2
    assert "set --vocab_file to" in capsys.readouterr().err
    assert main([*command, "--vocab_file", str(tmp_path / "tokens.json")]) == 0


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, `d2l`, the converted `model`, and variants of it that have no d2l format."""
    folder = tmp_path_factory.mktemp("model_folders")
    save_d2l_checkpoint(folder / "d2l", ReferenceBERT().state_dict(), small_vocabulary())
    model = folder / "model"
    convert_checkpoint(folder / "d2l", model, num_attention_heads=2)
    for name in ("masked", "grown", "eps"):
        shutil.copytree(model, folder / name)
    D2LBertForMaskedLM.from_pretrained(model).save_pretrained(folder / "masked")
    config = json.loads((model / "config.json").read_text())
    (folder / "eps" / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-12}))
    matching = D2LBertForSequenceClassification.from_pretrained(model, classifier_head="matching")
    matching.save_pretrained(folder / "matching")
    grown = D2LBertForPreTraining.from_pretrained(model)
    grown.resize_token_embeddings(64)
    grown.save_pretrained(folder / "grown")
    return folder


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["export", "nowhere", "--format", "d2l-torch", "--output_dir", "out"], "nowhere/config.json: No such file"),
        (["export", ".", "--format", "d2l-torch", "--output_dir", "out"], "config.json"),
        (["export", "masked", "--format", "d2l-torch", "--output_dir", "out"], "D2LBertForMaskedLM"),
        (
            ["export", "grown", "--format", "d2l-torch", "--output_dir", "out"],
            "50 tokens for 64 embedding rows; resize the",
        ),
        (["export", "model", "--format", "d2l-torch", "--output_dir", "d2l"], "--overwrite_output_dir"),
        (["verify", "nowhere"], "conversion_certificate.json: No such file"),
        (["export", "model", "--format", "d2l-torch", "--output_dir", "./model"], "is the model folder itself"),
        (["export", "eps", "--format", "d2l-torch", "--output_dir", "out"], "layer_norm_eps is 1e-12, but d2l's is"),
        (
            ["export", "matching", "--format", "d2l-torch", "--output_dir", "out"],
            "fine-tune a pretrained model with classifier_head pooler",
        ),
        (["convert", "x" * 300, "--output_dir", "out"], "no such file or folder, or not readable"),
        (["convert", "d2l", "--vocab_file", "x" * 300, "--output_dir", "out"], "x: not found; set --vocab_file"),
        (["convert", "d2l", "--framework", "mxnet", "--output_dir", "out"], "only for bert.base and bert.small"),
    ],
)
def test_wrong_arguments_are_rejected_before_anything_is_written(
    command: list[str], message: str, model_folders: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(model_folders, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error, error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_zip_archive_converts_to_same_files_as_its_folder(d2l_checkpoint: Path, tmp_path: Path):
    archive = tmp_path / "bert.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in d2l_checkpoint.iterdir():
            file.write(path, f"bert.small.torch/{path.name}")
    convert_checkpoint(archive, tmp_path / "from_zip", num_attention_heads=2)
    convert_checkpoint(d2l_checkpoint, tmp_path / "from_folder", num_attention_heads=2)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "from_zip" / name).read_bytes() == (tmp_path / "from_folder" / name).read_bytes()


def test_padding_id_comes_from_vocabulary(reference_bert: ReferenceBERT, tmp_path: Path):
    tokens = small_vocabulary()[::-1]
    source = save_d2l_checkpoint(tmp_path / "d2l", reference_bert.state_dict(), tokens)
    convert_checkpoint(source, tmp_path / "model", num_attention_heads=2)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["pad_token_id"] == tokens.index("<pad>")


def test_missing_source_is_named_with_what_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture):
    missing = tmp_path / "missing"
    error = error_line(["convert", missing, "--output_dir", tmp_path / "model"], capsys)
    assert f"{missing}: no such file or folder, or not readable; give bert.small, bert.base, a folder or zip" in error
    assert list(tmp_path.iterdir()) == []


def remove(name: str):
    def change(folder: Path) -> None:
        (folder / name).unlink()

    return change


def change_vocabulary(change_list):
    def change(folder: Path) -> None:
        tokens = json.loads((folder / "vocab.json").read_text())
        (folder / "vocab.json").write_text(json.dumps(change_list(tokens)))

    return change


def set_shape(name: str, *shape: int):
    return change_state_dict(lambda state: state.__setitem__(name, torch.zeros(shape)))


INVALID_SOURCES = {
    "no vocabulary": (remove("vocab.json"), "vocab.json: not found"),
    "no params": (remove("pretrained.params"), "pretrained.params: not found"),
    "vocabulary too short": (
        change_vocabulary(lambda tokens: tokens[:-1]),
        r"vocab.json: 49 tokens, but .*50 embedding rows",
    ),
    "duplicate token": (
        change_vocabulary(lambda tokens: [*tokens[:-1], "w1"]),
        "vocab.json: the token 'w1' has two ids",
    ),
    "no special token": (
        change_vocabulary(lambda tokens: ["x" if t == "<sep>" else t for t in tokens]),
        "<sep> is missing",
    ),
    "duplicate special token": (change_vocabulary(lambda tokens: [*tokens[:-1], "<cls>"]), "'<cls>' has two ids"),
    "missing tensor": (change_state_dict(lambda s: s.pop("mlm.mlp.2.bias")), "missing tensors: mlm.mlp.2.bias"),
    "unexpected tensor": (set_shape("encoder.extra", 2), "unexpected tensors: encoder.extra"),
    "missing block": (
        change_state_dict(lambda s: [s.pop(n) for n in list(s) if "blks.0" in n]),
        "missing tensors: encoder.blks.0",
    ),
    "no blocks": (change_state_dict(lambda s: [s.pop(n) for n in list(s) if "blks" in n]), "no Transformer block"),
    "d2l 0.11": (
        change_state_dict(lambda s: [s.pop(n) for n in list(s) if "pos_embedding" in n or "attention.W_q.bias" in n]),
        r"has no learned positions, as in d2l 0.11; give a checkpoint of d2l 0.12",
    ),
    "integer tensor": (
        change_state_dict(lambda s: s.__setitem__("hidden.0.bias", torch.zeros(16, dtype=torch.int32))),
        "hidden.0.bias is of type int32; save float16, float32 or float64",
    ),
    "wrong shape": (set_shape("encoder.blks.1.attention.W_q.weight", 16, 15), r"W_q.weight has shape \(16, 15\)"),
    "flat positions": (
        set_shape("encoder.pos_embedding", 64, 16),
        r"params: encoder.pos_embedding has shape",
    ),
    "flat embedding": (set_shape("encoder.token_embedding.weight", 800), r"token_embedding.weight has shape \(800,\)"),
    "tensor instead of a dict": (
        lambda folder: torch.save(torch.zeros(3), folder / "pretrained.params"),
        "it contains objects that are not named tensors",
    ),
    "number among the tensors": (
        change_state_dict(lambda s: s.__setitem__("epoch", 3)),
        "it contains objects that are not named tensors",
    ),
}


@pytest.mark.parametrize("case", INVALID_SOURCES)
def test_invalid_source_is_rejected_in_one_line_and_leaves_no_files(
    case: str, d2l_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    change, message = INVALID_SOURCES[case]
    change(d2l_checkpoint)
    code = main(["convert", str(d2l_checkpoint), "--output_dir", str(tmp_path / "model"), "--num_attention_heads", "2"])
    error = capsys.readouterr().err
    assert code == 2
    assert re.search(message, error), error
    assert error.count("\n") == 1, error
    assert list(tmp_path.iterdir()) == [d2l_checkpoint]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "set --num_attention_heads"),
        (["--num_attention_heads", "3"], r"hidden_size \(16\) is not a multiple of --num_attention_heads \(3\)"),
        (["--num_attention_heads", "0"], "--num_attention_heads 0: "),
    ],
)
def test_number_of_heads_is_required_and_must_divide_hidden_size(
    options: list[str], message: str, d2l_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main(["convert", str(d2l_checkpoint), "--output_dir", str(tmp_path / "model"), *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "model").exists()


def test_nonempty_output_folder_is_rejected_without_overwrite_option(
    d2l_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    output = tmp_path / "model"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    command = ["convert", str(d2l_checkpoint), "--output_dir", str(output), "--num_attention_heads", "2"]
    assert main(command) == 2
    assert "--overwrite_output_dir" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["thesis.tex"]
    assert main([*command, "--overwrite_output_dir"]) == 0
    assert (output / "thesis.tex").read_text() == "years of work"
    assert (output / "model.safetensors").is_file()


def test_written_files_follow_umask(d2l_checkpoint: Path, tmp_path: Path):
    umask = os.umask(0o027)
    try:
        convert_checkpoint(d2l_checkpoint, tmp_path / "model", num_attention_heads=2)
    finally:
        os.umask(umask)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").iterdir()} == {"0o640"}
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750


def test_archive_with_two_checkpoints_is_rejected(d2l_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    archive = tmp_path / "two.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for folder in ("a", "b"):
            for path in d2l_checkpoint.iterdir():
                file.write(path, f"{folder}/{path.name}")
    assert main(["convert", str(archive), "--output_dir", str(tmp_path / "model")]) == 2
    assert "has 2 files named pretrained.params; unpack it and give the folder" in capsys.readouterr().err
