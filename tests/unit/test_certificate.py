"""The certificate of a conversion: what it says, and that nothing gets past it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from bert_snli.cli import main
from bert_snli.errors import BertSnliError
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
from conversion import convert as convert_module
from conversion import d2l_layout
from conversion.certificate import CERTIFICATE
from conversion.checkpoint import read_checkpoint
from conversion.convert import convert
from conversion.proof import TOLERANCE, make_probe, prove, relative_difference
from conversion.reference import BookModel
from conversion.weights_file import WeightsFile
from tests.support.checkpoints import save_d2l_checkpoint, small_vocabulary
from tests.support.d2l_reference import ReferenceBERT
from tests.support.real_data import real_data
from tests.support.tolerances import D2L_TOLERANCE, rounding

TINY = D2LBertConfig(hidden_size=16, intermediate_size=24)  # the sizes of `ReferenceBERT`
QUERY = "bert.encoder.layer.0.attention.query.weight"
KEY = "bert.encoder.layer.0.attention.key.weight"


@pytest.fixture
def model(d2l_checkpoint: Path, tmp_path: Path) -> Path:
    convert(d2l_checkpoint, tmp_path / "model", num_attention_heads=2)
    return tmp_path / "model"


def test_it_names_every_tensor_on_both_sides(model: Path, d2l_checkpoint: Path, reference_bert: ReferenceBERT):
    certificate = json.loads((model / CERTIFICATE).read_text())
    params = (d2l_checkpoint / "pretrained.params").read_bytes()
    assert certificate["source"]["params_sha256"] == hashlib.sha256(params).hexdigest()
    assert (certificate["source"]["framework"], certificate["source"]["form"]) == ("pytorch", "pretraining")
    weights = load_file(model / "model.safetensors")
    source = reference_bert.state_dict()
    assert {record["source"]["name"] for record in certificate["tensors"]} == source.keys()
    assert {record["target"]["name"] for record in certificate["tensors"]} == weights.keys()
    for record in certificate["tensors"]:
        for side, array in (
            ("source", source[record["source"]["name"]].numpy()),
            ("target", weights[record["target"]["name"]]),
        ):
            said = record[side]
            assert said["shape"] == list(array.shape) and said["dtype"] == array.dtype.name
            assert said["sha256"] == hashlib.sha256(array.tobytes()).hexdigest()
    layers = ["embeddings", "block 1", "block 2", "pooler", "masked language model", "next sentence"]
    assert [entry["layer"] for entry in certificate["proof"]] == layers
    assert max(entry["exact"] for entry in certificate["proof"]) <= rounding(TINY, torch.float64)
    card = (model / "README.md").read_text()
    assert certificate["source"]["params_sha256"] in card and "| block 2 |" in card


def test_the_reference_gives_what_the_books_equations_give(d2l_checkpoint: Path, reference_bert: ReferenceBERT):
    """`BookModel` (numpy) against `tests.support.d2l_reference` (PyTorch), both in float64."""
    book = BookModel(read_checkpoint(d2l_checkpoint / "pretrained.params"), num_heads=2)
    tokens, segments = np.array([[3, 9, 4, 8], [3, 7, 6, 4]]), np.array([[0, 0, 1, 1], [0, 1, 0, 0]])
    lengths = np.array([4, 3])
    layers = book.layers(tokens, segments, lengths)
    heads = book.heads(layers[-1])
    with torch.no_grad():
        positions = torch.arange(4).expand(2, 4)
        encoded, mlm, nsp = reference_bert.double()(
            torch.from_numpy(tokens), torch.from_numpy(segments), torch.from_numpy(lengths), positions
        )
    for ours, theirs in ((layers[-1], encoded), (heads["masked language model"], mlm), (heads["next sentence"], nsp)):
        assert relative_difference(ours, theirs.numpy()) <= rounding(TINY, torch.float64)


@pytest.mark.parametrize("name", ["torch-small", "mxnet-small", "torch-tiny", "mxnet-tiny"])
def test_the_reference_gives_what_the_books_own_code_gave(name: str):
    folder = real_data(f"checkpoints/{name}")
    heads = json.loads((folder / "meta.json").read_text())["geometry"]["num_heads"]
    book = BookModel(read_checkpoint(folder / "pretrained.params"), heads)
    case = {key[4:]: value for key, value in np.load(folder / "reference.npz").items() if key.startswith("pad/")}
    layers = book.layers(case["tokens"], case["segments"], case["valid_lens"])
    assert relative_difference(case["encoder"], layers[-1]) <= D2L_TOLERANCE
    ours = book.heads(layers[-1])
    assert relative_difference(case["pooled"], ours["pooler"]) <= D2L_TOLERANCE
    rows = np.arange(len(case["tokens"]))[:, None]
    assert (
        relative_difference(case["mlm"], ours["masked language model"][rows, case["pred_positions"]]) <= D2L_TOLERANCE
    )


def test_verify_says_that_all_is_well(model: Path, d2l_checkpoint: Path, capsys):
    assert main(["verify", str(model)]) == 0
    assert main(["verify", str(model), "--against", str(d2l_checkpoint)]) == 0
    assert "as certified; 45 tensors" in capsys.readouterr().out


def test_folder_without_label_names_still_verifies(model: Path):
    """Earlier versions wrote no label names for pretrained models and certified 2 labels."""
    old = json.loads((model / "config.json").read_text())
    del old["id2label"], old["label2id"]
    (model / "config.json").write_text(json.dumps(old))
    content = json.loads((model / CERTIFICATE).read_text())
    content["geometry"]["num_labels"] = 2
    content["files"]["config.json"] = hashlib.sha256((model / "config.json").read_bytes()).hexdigest()
    (model / CERTIFICATE).write_text(json.dumps(content))
    assert main(["verify", str(model)]) == 0


def test_the_other_frameworks_file_is_told_apart(model: Path, tmp_path: Path, capsys):
    assert main(["export", str(model), "--format", "d2l-mxnet", "--output_dir", str(tmp_path / "mx")]) == 0
    assert main(["verify", str(model), "--against", str(tmp_path / "mx")]) == 2
    assert "a file of mxnet" in capsys.readouterr().err


def test_heads_that_the_book_has_not_are_warned_of(tmp_path: Path, capsys):
    bert = ReferenceBERT(vocab=10, size=128, inner=128, heads=2)
    source = save_d2l_checkpoint(tmp_path / "book", bert.state_dict(), small_vocabulary(10))
    command = ["convert", str(source), "--output_dir", str(tmp_path / "model"), "--overwrite_output_dir"]
    assert main(command) == 0 and capsys.readouterr().err == ""
    assert main([*command, "--num_attention_heads", "4"]) == 0
    assert "warning: --num_attention_heads 4: the book's model of these sizes has 2" in capsys.readouterr().err


def test_what_was_put_beside_the_model_is_no_concern_of_verify(model: Path):
    (model / ".cache" / "huggingface").mkdir(parents=True)  # as `hf download --local_dir` does
    (model / "notes.txt").write_text("mine")
    assert main(["verify", str(model)]) == 0


def test_the_same_tensors_in_another_file_verify(model: Path, reference_bert: ReferenceBERT, tmp_path: Path):
    twin = tmp_path / "twin"
    twin.mkdir()
    torch.save(reference_bert.state_dict(), twin / "pretrained.params", _use_new_zipfile_serialization=False)
    (twin / "vocab.json").write_text(json.dumps(small_vocabulary(), indent=1))
    assert main(["verify", str(model), "--against", str(twin)]) == 0


def weights(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        tensors = {name: array.copy() for name, array in load_file(model / "model.safetensors").items()}
        change(tensors)
        tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    return spoil


def swap_query_and_key(tensors: dict) -> None:
    tensors[QUERY], tensors[KEY] = tensors[KEY], tensors[QUERY]


def flip_one_bit(tensors: dict) -> None:
    tensors["lm_head.decoder.weight"].view(np.uint8)[7, 3] ^= 1


def shift_vocabulary(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    ordered = sorted(words, key=words.get)
    tokenizer["model"]["vocab"] = {
        word: index for index, word in enumerate([*ordered[:5], ordered[-1], *ordered[5:-1]])
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))


def without_rules(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps({**tokenizer, "normalizer": None}))


def config(**changes: object) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        old = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**old, **changes}))

    return spoil


def certificate(content: str) -> Callable[[Path], None]:
    return lambda model: (model / CERTIFICATE).write_text(content)


FAULTS = {
    "two attention matrices swapped": (weights(swap_query_and_key), "attention.key.weight and 1 more not as certified"),
    "one bias zeroed": (
        weights(lambda t: t["bert.encoder.layer.1.attention.output.bias"].fill(0)),
        "output.bias not as",
    ),
    "a bias that shows in no output": (
        weights(lambda t: t["bert.encoder.layer.1.attention.key.bias"].fill(0)),
        "key.bias",
    ),
    "transposed weight": (weights(lambda t: t.__setitem__(QUERY, t[QUERY].T)), "query.weight not as certified"),
    "one bit": (weights(flip_one_bit), "lm_head.decoder.weight not as certified"),
    "a tensor less": (weights(lambda t: t.pop("nsp_head.bias")), "nsp_head.bias not as certified"),
    "wrong number of heads": (config(num_attention_heads=4), "num_attention_heads is 4, certified was 2"),
    "a head of ours": (config(classifier_head="matching"), "classifier_head is matching, certified was pooler"),
    "shifted vocabulary": (shift_vocabulary, "tokenizer.json: its vocabulary is not the certified one"),
    "another padding": (config(pad_token_id=7), "config.json: not as certified: changed since"),
    "other code": (lambda model: (model / "modeling_d2l_bert.py").write_text("import os"), "bert.py: not as certified"),
    "no code": (
        lambda model: (model / "modeling_d2l_bert.py").unlink(),
        "bert.py: not as certified: gone",
    ),
    "another tokenizer": (without_rules, "tokenizer.json: not as certified"),
    "many blocks": (config(num_hidden_layers=2_000_000), "num_hidden_layers is 2000000, certified was 2"),
    "a certificate of lists": (certificate('{"format_version": 1, "geometry": []}'), "not a certificate that can be"),
    "a certificate that nests": (certificate("[" * 10**5), "not a certificate that can be read"),
    "a configuration of nonsense": (config(architectures={"a": 1}), "config.json: not the configuration of a model"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "model.safetensors: cannot be read"),
    "cut certificate": (certificate("{"), "not a certificate that can be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_catches(fault: str, model: Path, capsys):
    spoil, message = FAULTS[fault]
    spoil(model)
    assert main(["verify", str(model)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    "fault",
    ["two attention matrices swapped", "one bias zeroed", "transposed weight", "wrong number of heads"],
)
def test_the_proof_alone_catches(fault: str, model: Path, d2l_checkpoint: Path):
    book = BookModel(read_checkpoint(d2l_checkpoint / "pretrained.params"), num_heads=2)
    prove(book, model, D2LBertForPreTraining)
    FAULTS[fault][0](model)
    with pytest.raises(BertSnliError, match="block [12] of the model differs from the book's equations"):
        prove(book, model, D2LBertForPreTraining)


def test_a_wrong_epsilon_is_far_above_the_tolerance(model: Path, d2l_checkpoint: Path):
    config(layer_norm_eps=1e-12)(model)
    book = BookModel(read_checkpoint(d2l_checkpoint / "pretrained.params"), num_heads=2)
    with pytest.raises(BertSnliError, match="block 1 of the model differs .* by .*e-0[4-7]"):
        prove(book, model, D2LBertForPreTraining)
    assert TOLERANCE < 1e-9


def test_another_source_does_not_verify(model: Path, reference_bert: ReferenceBERT, tmp_path: Path, capsys):
    other = {
        name: value + 1 if name == "nsp.output.bias" else value for name, value in reference_bert.state_dict().items()
    }
    save_d2l_checkpoint(tmp_path / "other", other, small_vocabulary())
    assert main(["verify", str(model), "--against", str(tmp_path / "other")]) == 2
    assert "nsp.output.bias not as certified" in capsys.readouterr().err
    save_d2l_checkpoint(tmp_path / "other", reference_bert.state_dict(), [*small_vocabulary()[:-2], "x", "y"])
    assert main(["verify", str(model), "--against", str(tmp_path / "other")]) == 2
    assert "not the vocabulary" in capsys.readouterr().err


def swapped_rules() -> dict:
    swap = {"query": "key", "key": "query"}

    def other(name: str) -> str:
        *front, layer, part = name.split(".")
        return ".".join([*front, swap.get(layer, layer), part])

    rules = (replace(rule, hugging_face=other(rule.hugging_face)) for rule in d2l_layout.FORMS["pretraining"])
    return {**d2l_layout.FORMS, "pretraining": tuple(rules)}


def test_a_fault_in_the_map_is_caught_by_the_proof(d2l_checkpoint: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(d2l_layout, "FORMS", swapped_rules())
    with pytest.raises(BertSnliError, match="block 1 of the model differs from the book's equations"):
        convert(d2l_checkpoint, tmp_path / "model", num_attention_heads=2)
    assert not (tmp_path / "model").exists()


def test_a_fault_in_the_writing_is_caught_by_the_hashes(d2l_checkpoint: Path, tmp_path: Path, monkeypatch):
    append = WeightsFile.append
    monkeypatch.setattr(WeightsFile, "append", lambda file, array: append(file, array * (array.shape != (16,))))
    with pytest.raises(BertSnliError, match="not as certified"):
        convert(d2l_checkpoint, tmp_path / "model", num_attention_heads=2)
    assert not (tmp_path / "model").exists()


def test_a_tokenizer_with_other_ids_is_caught(d2l_checkpoint: Path, tmp_path: Path, monkeypatch):
    build = convert_module.build_tokenizer
    monkeypatch.setattr(
        convert_module, "build_tokenizer", lambda tokens, **options: build([*tokens[:-2], "x", "y"], **options)
    )
    with pytest.raises(BertSnliError, match="the tokenizer made from it has other ids"):
        convert(d2l_checkpoint, tmp_path / "model", num_attention_heads=2)


def test_the_probe_has_several_lengths_both_segments_and_padding(model: Path):
    probe = make_probe(D2LBertForPreTraining.from_pretrained(model).config)
    rows, length = probe.tokens_BL.shape
    assert len(set(probe.lengths_B)) == rows == 3 and probe.lengths_B.min() == 1 and probe.lengths_B.max() == length
    assert set(np.unique(probe.segments_BL)) == {0, 1}
