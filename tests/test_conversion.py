"""Conversion: every tensor accounted for, both ways; bad sources refused in one line with nothing written."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch

from bert_snli.cli import main
from bert_snli.modeling import D2LBertForPreTraining
from conversion.convert import book_state_dict, convert
from conversion.d2l_layout import FORMS, rules_for
from tests.book import BookBERT
from tests.conftest import save_book_checkpoint, tiny_vocabulary


def test_the_way_back_is_bit_identical(book_checkpoint: Path, book_bert: BookBERT, tmp_path: Path):
    convert(book_checkpoint, tmp_path / "model", num_attention_heads=2)
    back = book_state_dict(D2LBertForPreTraining.from_pretrained(tmp_path / "model"))
    source = book_bert.state_dict()
    assert back.keys() == source.keys()
    for name, value in source.items():
        assert back[name].shape == value.shape, name
        assert torch.equal(back[name], value), name


@pytest.mark.parametrize("form", FORMS)
def test_no_name_stands_twice_in_the_map(form: str):
    rules = rules_for(form, num_blocks=2)
    assert len({rule.d2l for rule in rules}) == len({rule.hugging_face for rule in rules}) == len(rules)


def test_a_zip_archive_with_a_folder_in_it_is_read(book_checkpoint: Path, tmp_path: Path):
    archive = tmp_path / "bert.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in book_checkpoint.iterdir():
            file.write(path, f"bert.small.torch/{path.name}")
    convert(archive, tmp_path / "from_zip", num_attention_heads=2)
    convert(book_checkpoint, tmp_path / "from_folder", num_attention_heads=2)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "from_zip" / name).read_bytes() == (tmp_path / "from_folder" / name).read_bytes()


def test_special_ids_come_from_the_vocabulary(book_bert: BookBERT, tmp_path: Path):
    source = save_book_checkpoint(tmp_path / "book", book_bert.state_dict(), tiny_vocabulary()[::-1])
    convert(source, tmp_path / "model", num_attention_heads=2)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["pad_token_id"] == 48


def test_python_m_conversion_is_the_same_command(book_checkpoint: Path, tmp_path: Path, run_python):
    done = run_python("-m", "conversion", book_checkpoint, "--output_dir", tmp_path / "m", "--num_attention_heads", 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m" / "model.safetensors").is_file()
    refused = run_python("-m", "conversion", tmp_path / "nowhere", "--output_dir", tmp_path / "n")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1


def without(name: str):
    def change(folder: Path) -> None:
        (folder / name).unlink()

    return change


def vocabulary(change_list):
    def change(folder: Path) -> None:
        tokens = json.loads((folder / "vocab.json").read_text())
        (folder / "vocab.json").write_text(json.dumps(change_list(tokens)))

    return change


def tensors(change_dict):
    def change(folder: Path) -> None:
        state = torch.load(folder / "pretrained.params", weights_only=True)
        change_dict(state)
        torch.save(state, folder / "pretrained.params")

    return change


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("hostile-code-ran"),))


def hostile_pickle(folder: Path) -> None:
    (folder / "pretrained.params").write_bytes(pickle.dumps({"weight": Hostile()}))


def cut_in_half(folder: Path) -> None:
    content = (folder / "pretrained.params").read_bytes()
    (folder / "pretrained.params").write_bytes(content[: len(content) // 2])


def set_shape(name: str, *shape: int):
    return tensors(lambda state: state.__setitem__(name, torch.zeros(shape)))


BAD_SOURCES = {
    "no vocabulary": (without("vocab.json"), "vocab.json: not found"),
    "no params": (without("pretrained.params"), "pretrained.params: not found"),
    "vocabulary too short": (vocabulary(lambda tokens: tokens[:-1]), r"vocab.json: 49 tokens, but .*50 embedding rows"),
    "duplicate token": (vocabulary(lambda tokens: [*tokens[:-1], "w1"]), "vocab.json: the token 'w1' has two ids"),
    "no special token": (vocabulary(lambda tokens: ["x" if t == "<sep>" else t for t in tokens]), "<sep> is not"),
    "duplicate special token": (vocabulary(lambda tokens: [*tokens[:-1], "<cls>"]), "'<cls>' has two ids"),
    "vocabulary is a dict": (vocabulary(lambda tokens: {t: i for i, t in enumerate(tokens)}), "make it a list"),
    "missing tensor": (tensors(lambda s: s.pop("mlm.mlp.2.bias")), "missing tensor: mlm.mlp.2.bias"),
    "unexpected tensor": (set_shape("encoder.extra", 2), "unexpected tensor: encoder.extra"),
    "missing block": (
        tensors(lambda s: [s.pop(n) for n in list(s) if "blks.0" in n]),
        "missing tensors: encoder.blks.0",
    ),
    "no blocks": (tensors(lambda s: [s.pop(n) for n in list(s) if "blks" in n]), "no Transformer block"),
    "wrong shape": (set_shape("encoder.blks.1.attention.W_q.weight", 16, 15), r"W_q.weight has shape \(16, 15\)"),
    "flat embedding": (set_shape("encoder.token_embedding.weight", 800), "token_embedding.weight has 1 dimensions"),
    "code in the pickle": (hostile_pickle, "not a plain PyTorch state_dict"),
    "truncated file": (cut_in_half, "pretrained.params: "),
    "a tensor alone": (
        lambda folder: torch.save(torch.zeros(3), folder / "pretrained.params"),
        "holds no named tensors",
    ),
    "a number among tensors": (tensors(lambda s: s.__setitem__("epoch", 3)), "'epoch' is not a tensor"),
    "html": (lambda folder: (folder / "pretrained.params").write_text("<html>404</html>"), "pretrained.params: "),
    "mxnet": (
        lambda folder: (folder / "pretrained.params").write_bytes(b"\x12\x01" + bytes(30)),
        "an MXNet checkpoint",
    ),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_bad_source_is_one_line_and_leaves_nothing(
    case: str, book_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    spoil, message = BAD_SOURCES[case]
    spoil(book_checkpoint)
    code = main(
        ["convert", str(book_checkpoint), "--output_dir", str(tmp_path / "model"), "--num_attention_heads", "2"]
    )
    error = capsys.readouterr().err
    assert code == 2
    assert re.search(message, error), error
    assert error.count("\n") == 1, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "add --num_attention_heads"),
        (["--num_attention_heads", "3"], r"hidden_size \(16\) is not a multiple of num_attention_heads \(3\)"),
        (["--num_attention_heads", "0"], "num_attention_heads"),
    ],
)
def test_heads_that_no_tensor_shows_are_asked_for(
    options: list[str], message: str, book_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main(["convert", str(book_checkpoint), "--output_dir", str(tmp_path / "model"), *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "model").exists()


def test_a_folder_that_holds_something_is_left_alone_unless_told_otherwise(
    book_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    output = tmp_path / "model"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    command = ["convert", str(book_checkpoint), "--output_dir", str(output), "--num_attention_heads", "2"]
    assert main(command) == 2
    assert "--overwrite_output_dir" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["thesis.tex"]
    assert main([*command, "--overwrite_output_dir"]) == 0
    assert (output / "thesis.tex").read_text() == "years of work"
    assert (output / "model.safetensors").is_file()


def test_others_may_read_what_was_written(book_checkpoint: Path, tmp_path: Path):
    umask = os.umask(0o027)
    try:
        convert(book_checkpoint, tmp_path / "model", num_attention_heads=2)
    finally:
        os.umask(umask)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").iterdir()} == {"0o640"}
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750


def test_an_archive_with_two_checkpoints_is_refused(
    book_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    archive = tmp_path / "two.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for folder in ("a", "b"):
            for path in book_checkpoint.iterdir():
                file.write(path, f"{folder}/{path.name}")
    assert main(["convert", str(archive), "--output_dir", str(tmp_path / "model")]) == 2
    assert "holds 2 files named pretrained.params" in capsys.readouterr().err


def test_a_member_that_points_outside_is_not_followed(book_checkpoint: Path, tmp_path: Path):
    archive = tmp_path / "slip.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in book_checkpoint.iterdir():
            file.write(path, f"../../{path.name}")
    before = sorted(path.name for path in tmp_path.parent.iterdir())
    convert(archive, tmp_path / "model", num_attention_heads=2)
    assert sorted(path.name for path in tmp_path.parent.iterdir()) == before
