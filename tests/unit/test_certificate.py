"""The conversion certificate: its content, and the damage that `verify` and `convert` detect."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from bert_snli.cli import main
from bert_snli.errors import BertSnliError
from bert_snli.files import CERTIFICATE
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
from conversion import convert, d2l_layout
from conversion.checkpoint import read_checkpoint
from conversion.convert import convert_checkpoint
from conversion.proof import TOLERANCE, make_probe, prove, relative_difference
from conversion.reference import ReferenceModel
from tests.support.checkpoints import save_d2l_checkpoint, small_vocabulary
from tests.support.d2l_reference import ReferenceBERT
from tests.support.real_data import real_data
from tests.support.tolerances import D2L_TOLERANCE, rounding

TINY = D2LBertConfig(hidden_size=16, intermediate_size=24)  # the sizes of `ReferenceBERT`
QUERY = "bert.encoder.layer.0.attention.query.weight"
KEY = "bert.encoder.layer.0.attention.key.weight"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, `d2l`, and the model converted from it, `model`."""
    folder = tmp_path_factory.mktemp("converted")
    torch.manual_seed(0)  # the weights of the fixture `reference_bert`
    source = save_d2l_checkpoint(folder / "d2l", ReferenceBERT().state_dict(), small_vocabulary())
    convert_checkpoint(source, folder / "model", num_attention_heads=2)
    return folder


@pytest.fixture
def d2l_checkpoint(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted / "d2l", tmp_path / "d2l"))


@pytest.fixture
def model(converted: Path, tmp_path: Path) -> Path:
    """A converted model that the test may change."""
    return Path(shutil.copytree(converted / "model", tmp_path / "model"))


def test_certificate_records_shape_dtype_and_hash_of_every_tensor(
    model: Path, d2l_checkpoint: Path, reference_bert: ReferenceBERT
):
    certificate = json.loads((model / CERTIFICATE).read_text())
    params = (d2l_checkpoint / "pretrained.params").read_bytes()
    assert certificate["source"]["params_sha256"] == hashlib.sha256(params).hexdigest()
    assert (certificate["source"]["framework"], certificate["source"]["model_kind"]) == ("pytorch", "pretraining")
    weights = load_file(model / "model.safetensors")
    source = reference_bert.state_dict()
    assert {record["source"]["name"] for record in certificate["tensors"]} == source.keys()
    assert {record["target"]["name"] for record in certificate["tensors"]} == weights.keys()
    for record in certificate["tensors"]:
        for side, array in (
            ("source", source[record["source"]["name"]].numpy()),
            ("target", weights[record["target"]["name"]]),
        ):
            recorded = record[side]
            assert recorded["shape"] == list(array.shape) and recorded["dtype"] == array.dtype.name
            assert recorded["sha256"] == hashlib.sha256(array.tobytes()).hexdigest()
    layers = ["embeddings", "block 1", "block 2", "pooler", "prediction_logits", "seq_relationship_logits"]
    assert [entry["layer"] for entry in certificate["proof"]] == layers
    assert max(entry["in_float64"] for entry in certificate["proof"]) <= rounding(TINY, torch.float64)


def test_numpy_reference_agrees_with_pytorch_reference(d2l_checkpoint: Path, reference_bert: ReferenceBERT):
    """Both compute d2l's equations in float64: `ReferenceModel` in numpy, `tests.support.d2l_reference` in PyTorch."""
    reference = ReferenceModel(read_checkpoint(d2l_checkpoint / "pretrained.params"), num_attention_heads=2)
    tokens, segments = np.array([[3, 9, 4, 8], [3, 7, 6, 4]]), np.array([[0, 0, 1, 1], [0, 1, 0, 0]])
    lengths = np.array([4, 3])
    layers = reference.compute_layers(tokens, segments, np.arange(4) < lengths[:, None])
    with torch.no_grad():
        positions = torch.arange(4).expand(2, 4)
        encoded, mlm, nsp = reference_bert.double()(
            torch.from_numpy(tokens), torch.from_numpy(segments), torch.from_numpy(lengths), positions
        )
    for ours, theirs in (
        (layers["block 2"], encoded),
        (layers["prediction_logits"], mlm),
        (layers["seq_relationship_logits"], nsp),
    ):
        assert relative_difference(ours, theirs.numpy()) <= rounding(TINY, torch.float64)


@pytest.mark.parametrize("name", ["torch-small", "mxnet-small", "torch-tiny", "mxnet-tiny"])
def test_numpy_reference_agrees_with_outputs_of_d2l_code(name: str):
    folder = real_data(f"checkpoints/{name}")
    num_attention_heads = json.loads((folder / "meta.json").read_text())["geometry"]["num_heads"]
    reference = ReferenceModel(read_checkpoint(folder / "pretrained.params"), num_attention_heads)
    case = {key[4:]: value for key, value in np.load(folder / "reference.npz").items() if key.startswith("pad/")}
    mask = np.arange(case["tokens"].shape[1]) < case["valid_lens"][:, None]
    layers = reference.compute_layers(case["tokens"], case["segments"], mask)
    last_block = layers[f"block {len([name for name in layers if name.startswith('block')])}"]
    assert relative_difference(case["encoder"], last_block) <= D2L_TOLERANCE
    assert relative_difference(case["pooled"], layers["pooler"]) <= D2L_TOLERANCE
    rows = np.arange(len(case["tokens"]))[:, None]
    predicted = layers["prediction_logits"][rows, case["pred_positions"]]
    assert relative_difference(case["mlm"], predicted) <= D2L_TOLERANCE


def test_verify_accepts_unchanged_model(model: Path, reference_bert: ReferenceBERT, capsys):
    assert main(["verify", str(model)]) == 0
    assert f"matches its certificate ({len(reference_bert.state_dict())} tensors" in capsys.readouterr().out


def test_convert_warns_if_number_of_heads_is_not_the_one_of_d2l(tmp_path: Path, capsys):
    bert = ReferenceBERT(vocab=10, size=128, inner=128, heads=2)
    source = save_d2l_checkpoint(tmp_path / "d2l", bert.state_dict(), small_vocabulary(10))
    command = ["convert", str(source), "--output_dir", str(tmp_path / "model"), "--overwrite_output_dir"]
    assert main(command) == 0 and capsys.readouterr().err == ""
    assert main([*command, "--num_attention_heads", "4"]) == 0
    error = capsys.readouterr().err
    assert "num_attention_heads 4: " in error and "has 2" in error


def test_verify_ignores_additional_files(model: Path):
    (model / ".cache" / "huggingface").mkdir(parents=True)  # as `hf download --local_dir` does
    (model / "notes.txt").write_text("mine")
    assert main(["verify", str(model)]) == 0


def change_weights(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(model: Path) -> None:
        tensors = {name: array.copy() for name, array in load_file(model / "model.safetensors").items()}
        change(tensors)
        tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    return apply


def swap_query_and_key(tensors: dict) -> None:
    tensors[QUERY], tensors[KEY] = tensors[KEY], tensors[QUERY]


def flip_one_bit(tensors: dict) -> None:
    tensors["lm_head.decoder.weight"].view(np.uint8)[7, 3] ^= 1


def shift_vocabulary(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    ordered = sorted(ids, key=ids.get)
    tokenizer["model"]["vocab"] = {
        token: index for index, token in enumerate([*ordered[:5], ordered[-1], *ordered[5:-1]])
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))


def remove_normalizer(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps({**tokenizer, "normalizer": None}))


def change_config(**changes: object) -> Callable[[Path], None]:
    def apply(model: Path) -> None:
        old = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**old, **changes}))

    return apply


def replace_certificate(content: str) -> Callable[[Path], None]:
    return lambda model: (model / CERTIFICATE).write_text(content)


DAMAGES = {
    "two attention matrices swapped": (
        change_weights(swap_query_and_key),
        "attention.query.weight changed since conversion",
    ),
    "one bias zeroed": (
        change_weights(lambda t: t["bert.encoder.layer.1.attention.output.bias"].fill(0)),
        "output.bias changed since conversion",
    ),
    "a bias that changes no output zeroed": (
        change_weights(lambda t: t["bert.encoder.layer.1.attention.key.bias"].fill(0)),
        "key.bias changed since conversion",
    ),
    "one weight transposed": (
        change_weights(lambda t: t.__setitem__(QUERY, t[QUERY].T)),
        "query.weight changed since conversion",
    ),
    "one bit flipped": (change_weights(flip_one_bit), "lm_head.decoder.weight changed since conversion"),
    "a tensor removed": (
        change_weights(lambda t: t.pop("nsp_head.bias")),
        "nsp_head.bias changed since conversion",
    ),
    "another number of heads": (change_config(num_attention_heads=4), "config.json: changed since conversion"),
    "another classifier head": (change_config(classifier_head="matching"), "config.json: changed since conversion"),
    "vocabulary shifted": (shift_vocabulary, "tokenizer.json: changed since conversion"),
    "another padding token": (change_config(pad_token_id=7), "config.json: changed since conversion"),
    "code changed": (
        lambda model: (model / "modeling_d2l_bert.py").write_text("import os"),
        "bert.py: changed since conversion",
    ),
    "code removed": (
        lambda model: (model / "modeling_d2l_bert.py").unlink(),
        "bert.py: missing since conversion",
    ),
    "tokenizer changed": (remove_normalizer, "tokenizer.json: changed since conversion"),
    "millions of blocks": (change_config(num_hidden_layers=2_000_000), "config.json: changed since conversion"),
    "certificate with a list as files": (
        replace_certificate('{"format_version": 2, "files": []}'),
        "cannot be read as a certificate",
    ),
    "certificate nested too deeply": (replace_certificate("[" * 10**5), "cannot be read as a certificate"),
    "architectures of a wrong type": (
        change_config(architectures={"a": 1}),
        "config.json: changed since conversion",
    ),
    "configuration of a wrong type": (
        lambda model: (model / "config.json").write_text("[]"),
        "config.json: changed since conversion",
    ),
    "certificate of another version": (
        replace_certificate('{"format_version": 1}'),
        "cannot be read as a certificate (unknown format version); convert again",
    ),
    "weights removed": (lambda model: (model / "model.safetensors").unlink(), "model.safetensors: cannot be read"),
    "certificate truncated": (replace_certificate("{"), "cannot be read as a certificate"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_rejects_damaged_model_in_one_line(damage: str, model: Path, capsys):
    apply, message = DAMAGES[damage]
    apply(model)
    assert main(["verify", str(model)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    "damage",
    ["two attention matrices swapped", "one bias zeroed", "one weight transposed", "another number of heads"],
)
def test_layer_comparison_detects_wrong_weights_and_heads(damage: str, model: Path, d2l_checkpoint: Path):
    reference = ReferenceModel(read_checkpoint(d2l_checkpoint / "pretrained.params"), num_attention_heads=2)
    prove(reference, model, D2LBertForPreTraining)
    DAMAGES[damage][0](model)
    with pytest.raises(BertSnliError, match="block [12] differs"):
        prove(reference, model, D2LBertForPreTraining)


def test_layer_comparison_detects_wrong_layer_norm_epsilon(model: Path, d2l_checkpoint: Path):
    change_config(layer_norm_eps=1e-12)(model)
    reference = ReferenceModel(read_checkpoint(d2l_checkpoint / "pretrained.params"), num_attention_heads=2)
    with pytest.raises(BertSnliError, match="block 1 differs") as caught:
        prove(reference, model, D2LBertForPreTraining)
    difference = float(re.search(r"equations by (\S+) of", str(caught.value))[1])
    assert difference > 1000 * TOLERANCE


def swap_query_and_key_in_name_map() -> list:
    swap = {"query": "key", "key": "query"}

    def swap_name(name: str) -> str:
        *front, layer, part = name.split(".")
        return ".".join([*front, swap.get(layer, layer), part])

    return [replace(names, hugging_face=swap_name(names.hugging_face)) for names in d2l_layout.BLOCK]


def test_convert_detects_swapped_names_in_name_map(d2l_checkpoint: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(d2l_layout, "BLOCK", swap_query_and_key_in_name_map())
    with pytest.raises(BertSnliError, match="block 1 differs"):
        convert_checkpoint(d2l_checkpoint, tmp_path / "model", num_attention_heads=2)
    assert not (tmp_path / "model").exists()


def test_convert_detects_wrong_values_in_weights_file(d2l_checkpoint: Path, tmp_path: Path, monkeypatch):
    save = D2LBertForPreTraining.save_pretrained

    def zero_one_bias_and_save(model: D2LBertForPreTraining, folder: Path) -> None:
        torch.nn.init.zeros_(model.nsp_head.bias)
        save(model, folder)

    monkeypatch.setattr(D2LBertForPreTraining, "save_pretrained", zero_one_bias_and_save)
    with pytest.raises(BertSnliError, match="since conversion"):
        convert_checkpoint(d2l_checkpoint, tmp_path / "model", num_attention_heads=2)
    assert not (tmp_path / "model").exists()


def test_convert_detects_wrong_ids_in_tokenizer(d2l_checkpoint: Path, tmp_path: Path, monkeypatch):
    build = convert.build_tokenizer
    monkeypatch.setattr(
        convert, "build_tokenizer", lambda tokens, **options: build([*tokens[:-2], "x", "y"], **options)
    )
    with pytest.raises(BertSnliError, match="the tokenizer made from it has other ids"):
        convert_checkpoint(d2l_checkpoint, tmp_path / "model", num_attention_heads=2)


def test_probe_has_several_lengths_both_segments_and_padding(model: Path):
    probe = make_probe(D2LBertForPreTraining.from_pretrained(model).config)
    rows, length = probe["input_ids"].shape
    lengths = probe["attention_mask"].sum(1)
    assert len(set(lengths)) == rows == 3 and lengths.min() == 1 and lengths.max() == length
    assert set(np.unique(probe["token_type_ids"])) == {0, 1}
