"""Broken and hostile sources: one line, nothing executed, nothing written, memory within what the file could hold."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_snli.cli import main
from bert_snli.errors import BertSnliError
from conversion.checkpoint import read_checkpoint
from conversion.convert import convert
from tests.support.checkpoints import change_state_dict, save_d2l_checkpoint, small_vocabulary
from tests.support.d2l_reference import ReferenceBERT
from tests.support.mxnet_writer import rename_to_mxnet, write_v3
from tests.support.processes import limit_file_size

FORMATS = ("torch zip", "torch legacy", "mxnet")


def save(folder: Path, bert: ReferenceBERT, format: str) -> Path:
    """The checkpoint of `bert` in `folder`, as `format`."""
    save_d2l_checkpoint(folder, bert.state_dict(), small_vocabulary())
    if format == "torch legacy":
        torch.save(bert.state_dict(), folder / "pretrained.params", _use_new_zipfile_serialization=False)
    elif format == "mxnet":
        arrays = {name: value.numpy() for name, value in bert.state_dict().items()}
        write_v3(folder / "pretrained.params", rename_to_mxnet(arrays))
    return folder


class Calls:
    """Pickled, a call of `function`."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)


def saved(make: Callable[[], object], new: bool = True) -> Callable[[Path], None]:
    return lambda folder: torch.save(make(), folder / "pretrained.params", _use_new_zipfile_serialization=new)


repeated = change_state_dict(lambda state: state.update({"mlm.mlp.3.weight": torch.zeros(1).expand(10**6, 10**6)}))


def labels_without_end(folder: Path) -> None:
    """A classifier for as many labels as a file of 20 MB has room for."""
    state = torch.load(folder / "pretrained.params", weights_only=True)
    state = {name: value for name, value in state.items() if not name.startswith(("mlm", "nsp"))}
    state["output.weight"], state["output.bias"] = torch.zeros(20_000_000, 1, dtype=torch.int8), torch.zeros(1)
    torch.save(state, folder / "pretrained.params")


def packed(folder: Path) -> None:
    """A PyTorch file whose members have been compressed: a small file of many gigabytes, if one believed it."""
    original = zipfile.ZipFile(folder / "pretrained.params")
    members = {info.filename: original.read(info) for info in original.infolist()}
    with zipfile.ZipFile(folder / "pretrained.params", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def doubled(folder: Path) -> None:
    with zipfile.ZipFile(folder / "pretrained.params", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"other")


def flipped(folder: Path) -> None:
    path = folder / "pretrained.params"
    content = bytearray(path.read_bytes())
    content[content.index(b"data/0") + 1000] ^= 0xFF
    path.write_bytes(content)


def nonfinite(value: float) -> Callable[[Path], None]:
    return change_state_dict(lambda state: state["encoder.blks.1.ffn.dense1.weight"].__setitem__((3, 5), value))


def legacy_claim(folder: Path) -> None:
    """An old-format file with a storage of a million million numbers, none of them there."""
    torch.save({"a": torch.zeros(7)}, folder / "pretrained.params", _use_new_zipfile_serialization=False)
    content = (folder / "pretrained.params").read_bytes()
    claimed = content.replace(b"\x03cpu", b"\x03cpu").replace(b"K\x07", b"\x8a\x06" + (10**12).to_bytes(6, "little"))
    assert claimed != content
    (folder / "pretrained.params").write_bytes(claimed)


HOSTILE = {
    "a pickle that calls os.system": (
        write("pretrained.params", pickle.dumps({"a": Calls(os.system, "touch ran")})),
        "not a plain PyTorch state_dict|cannot be read as a PyTorch checkpoint",
    ),
    "the same within a PyTorch zip": (saved(lambda: {"a": Calls(os.system, "touch ran")}), r"it holds posix\.system"),
    "the same in the old format": (
        saved(lambda: {"a": Calls(os.system, "touch ran")}, new=False),
        r"it holds posix\.system",
    ),
    "a whole pickled network": (saved(lambda: torch.nn.Linear(2, 2)), r"it holds torch\.nn\.modules"),
    "a bytearray of gigabytes": (saved(lambda: {"a": Calls(bytearray, 2**35)}, new=False), r"it holds .*bytearray"),
    "float8": (saved(lambda: {"a": torch.zeros(3).to(torch.float8_e4m3fn)}), "not a plain PyTorch state_dict"),
    "millions of labels": (labels_without_end, "output.weight has 20,000,000 rows"),
    "a name that writes to the terminal": (
        change_state_dict(lambda state: state.update({"encoder.x\nall is well\x1b[31m": torch.zeros(1)})),
        r"unexpected tensor: encoder.x\\nall is well\\x1b\[31m",
    ),
    "a name without end": (change_state_dict(lambda state: state.update({"x" * 10**6: torch.zeros(1)})), "xxx[.]{3}$"),
    "a number repeated": (repeated, "claims more numbers than the file holds"),
    "compressed inside": (packed, "compressed inside"),
    "two members of one name": (doubled, "two members of one name"),
    "one flipped byte": (flipped, "checksum of"),
    "a claim of terabytes, old format": (legacy_claim, "cannot be read as a PyTorch checkpoint"),
    "sparse": (saved(lambda: {"a": torch.eye(3).to_sparse()}), "not a plain PyTorch state_dict"),
    "complex": (saved(lambda: {"a": torch.zeros(3, dtype=torch.complex64)}), "not a plain PyTorch state_dict"),
    "on no device": (saved(lambda: {"a": torch.zeros(3, device="meta")}), "not a plain PyTorch state_dict"),
    "NaN": (
        nonfinite(float("nan")),
        r"NaN or infinite numbers in encoder.blks.1.ffn.dense1.weight; .*--allow_nonfinite",
    ),
    "infinity": (nonfinite(float("inf")), "--allow_nonfinite"),
    "a web page": (write("pretrained.params", b"\n<!DOCTYPE html><html>Not found</html>"), "a web page"),
    "an empty file": (write("pretrained.params", b""), "an empty file"),
    "text": (write("pretrained.params", b"404: Not Found"), "pretrained.params: "),
    "wrong magic": (write("pretrained.params", struct.pack("<QQQ", 0x113, 0, 0)), "pretrained.params: "),
    "vocabulary is a dict": (write("vocab.json", b'{"<unk>": 0}'), "make it a list of tokens"),
    "vocabulary is not UTF-8": (write("vocab.json", b'["\xff"]'), "not UTF-8"),
    "vocabulary is no JSON": (write("vocab.json", b"<unk>\n<pad>\n"), "not JSON"),
    "vocabulary nests deep": (write("vocab.json", b"[" * 10**6), "not JSON"),
    "vocabulary has half a character": (write("vocab.json", rb'["<unk>", "\ud800"]'), "half of a character"),
    "vocabulary of ten million tokens": (
        write("vocab.json", json.dumps([f"token{n}" for n in range(10**7)]).encode()),
        "too large for a vocabulary",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_source_is_one_line_and_leaves_nothing(
    case: str, d2l_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    spoil, message = HOSTILE[case]
    spoil(d2l_checkpoint)
    assert main(["convert", "book", "--output_dir", "model", "--num_attention_heads", "2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(message, error), error
    assert [path.name for path in tmp_path.iterdir()] == ["book"]


def test_nonfinite_weights_convert_when_asked_to(d2l_checkpoint: Path, tmp_path: Path, capsys):
    nonfinite(float("nan"))(d2l_checkpoint)
    command = ["convert", str(d2l_checkpoint), "--output_dir", str(tmp_path / "m"), "--num_attention_heads", "2"]
    assert main([*command, "--allow_nonfinite"]) == 0
    assert "warning: NaN or infinite numbers in encoder.blks.1" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "m")]) == 0


def member(name: str, content: bytes = b"", mode: int = 0) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info, content


ARCHIVES = {
    "a member above": (member("../../vocab.json", b"[]"), "points outside"),
    "an absolute member": (member("/tmp/evil", b"x"), "points outside"),
    "a drive": (member("C:\\evil", b"x"), "points outside"),
    "a symbolic link": (member("pretrained.params2", b"/etc/passwd", stat.S_IFLNK | 0o777), "points outside"),
    "a bomb": (member("other/pretrained.params", bytes(10**8)), "would take 100,000,000 bytes"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_hostile_archives(case: str, d2l_checkpoint: Path, tmp_path: Path, capsys):
    (info, content), message = ARCHIVES[case]
    with zipfile.ZipFile(tmp_path / "bert.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(d2l_checkpoint / "vocab.json", "vocab.json")
        if case != "a bomb":
            archive.write(d2l_checkpoint / "pretrained.params", "pretrained.params")
        archive.writestr(info, content, compress_type=zipfile.ZIP_DEFLATED)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["convert", str(tmp_path / "bert.zip"), "--output_dir", str(tmp_path / "m")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("format", FORMATS)
def test_truncation_at_every_percent(format: str, reference_bert: ReferenceBERT, tmp_path: Path):
    source = save(tmp_path / "book", reference_bert, format)
    whole = (source / "pretrained.params").read_bytes()
    for percent in range(100):
        (source / "pretrained.params").write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(BertSnliError) as caught:
            convert(source, tmp_path / "model", num_attention_heads=2)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "model").exists()


FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MUTATIONS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)


@pytest.mark.parametrize("format", FORMATS)
@FUZZ
@given(mutations=MUTATIONS, near_the_start=st.booleans())
def test_flipped_bytes_give_arrays_or_our_own_error(
    format: str, mutations: list, near_the_start: bool, reference_bert: ReferenceBERT, tmp_path: Path
):
    """Nothing but `BertSnliError` comes out of the readers, whatever bytes go in."""
    source = tmp_path / "book"
    if not source.exists():
        save(source, reference_bert, format)
        (tmp_path / "whole").write_bytes((source / "pretrained.params").read_bytes())
    content = (tmp_path / "whole").read_bytes()
    path = tmp_path / "mutated.params"
    path.write_bytes(mutated(content, mutations, 4000 if near_the_start else len(content)))
    read_or_refuse(path)


@FUZZ
@given(mutations=MUTATIONS)
def test_flipped_bytes_under_a_right_checksum(mutations: list, d2l_checkpoint: Path, tmp_path: Path):
    """A PyTorch zip made anew around a pickle that was changed, as somebody would who means harm."""
    path = tmp_path / "mutated.params"
    with zipfile.ZipFile(d2l_checkpoint / "pretrained.params") as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            content = source.read(info)
            is_pickle = info.filename.endswith("data.pkl")
            target.writestr(info.filename, mutated(content, mutations, len(content)) if is_pickle else content)
    read_or_refuse(path)


def mutated(content: bytes, mutations: list, reach: int) -> bytes:
    changed = bytearray(content)
    for place, byte in mutations:
        changed[int(place * reach)] = byte
    return bytes(changed)


def read_or_refuse(path: Path) -> None:
    try:
        checkpoint = read_checkpoint(path)
        for piece in checkpoint.pieces(checkpoint.tensors):
            assert all(array.nbytes <= path.stat().st_size for array in piece.values())
    except BertSnliError:
        pass


@FUZZ
@given(
    content=st.binary(max_size=400), start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x12\x01" + bytes(14)])
)
def test_random_bytes_are_refused(content: bytes, start: bytes, tmp_path: Path):
    path = tmp_path / "x.params"
    path.write_bytes(start + content)
    with pytest.raises(BertSnliError):
        read_checkpoint(path)


def limited_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))


@pytest.mark.slow
def test_a_claim_is_not_allocated(d2l_checkpoint: Path, tmp_path: Path):
    """Run in a process that may not have more memory than the libraries take."""
    repeated(d2l_checkpoint)
    command = [
        sys.executable,
        "-m",
        "bert_snli.cli",
        "convert",
        str(d2l_checkpoint),
        "--output_dir",
        str(tmp_path / "m"),
    ]
    done = subprocess.run(command, preexec_fn=limited_memory, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "claims more numbers than the file holds" in done.stderr, done.stderr


@pytest.mark.parametrize("moment", ["conversion.convert.prove", "conversion.convert.Certificate.write", "os.rename"])
def test_a_killed_conversion_leaves_nothing_that_looks_finished(moment: str, d2l_checkpoint: Path, tmp_path: Path):
    """SIGKILL when `moment` is reached: with the weights written, all but the certificate, and all."""
    script = f"""
import os, sys, time
import conversion.convert
from bert_snli.cli import main
def wait(*_, **__):
    print("now", flush=True)
    time.sleep(60)
{moment} = wait
main(sys.argv[1:])
"""
    output = tmp_path / "out" / "model"
    command = ["convert", str(d2l_checkpoint), "--num_attention_heads", "2", "--output_dir", str(output)]
    process = subprocess.Popen([sys.executable, "-c", script, *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "now\n"
    process.kill()
    process.wait()
    assert not output.exists()
    (left,) = output.parent.iterdir()
    assert left.name.startswith(".partial-") and (left / "model.safetensors").is_file()


def test_ctrl_c_is_one_line_and_leaves_nothing(d2l_checkpoint: Path, tmp_path: Path, capsys, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("conversion.convert.prove", interrupted)
    command = ["convert", str(d2l_checkpoint), "--num_attention_heads", "2", "--output_dir", str(tmp_path / "model")]
    assert main(command) == 130
    assert capsys.readouterr().err == "bert-snli convert: interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == ["book"]


@pytest.mark.parametrize("command", ["convert", "d2l-torch", "d2l-mxnet"])
def test_a_full_disk_is_one_line_and_leaves_nothing(command: str, d2l_checkpoint: Path, tmp_path: Path):
    """A limit on the size of files stands in for the disk: the system answers a write in the same way."""
    output = tmp_path / "out"
    if command == "convert":
        arguments = ["convert", str(d2l_checkpoint), "--num_attention_heads", "2"]
    else:
        convert(d2l_checkpoint, tmp_path / "model", num_attention_heads=2)
        arguments = ["export", str(tmp_path / "model"), "--format", command]
    done = subprocess.run(
        [sys.executable, "-m", "bert_snli.cli", *arguments, "--output_dir", str(output)],
        preexec_fn=limit_file_size,
        capture_output=True,
        text=True,
    )
    loading, error = done.stderr.splitlines()
    assert (done.returncode, loading) == (2, "bert-snli: loading ...")
    assert f"--output_dir {output}: cannot be written (File too large)" in error
    assert not output.exists() and not list(tmp_path.glob(".partial-*"))
