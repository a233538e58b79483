"""Damaged and malicious sources: a one-line error, no code executed, no files written, no memory for false sizes."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_snli.cli import main
from bert_snli.errors import BertSnliError
from bert_snli.tokenization import MAX_VOCABULARY_BYTES
from conversion.checkpoint import read_checkpoint
from conversion.convert import convert_checkpoint
from tests.support.checkpoints import change_state_dict, save_d2l_checkpoint, small_vocabulary
from tests.support.d2l_reference import ReferenceBERT
from tests.support.mxnet_writer import rename_to_mxnet, write_v3

FORMATS = ("torch zip", "torch legacy", "mxnet")


def save(folder: Path, bert: ReferenceBERT, format: str) -> Path:
    """Save `bert` in `folder` as `format`."""
    save_d2l_checkpoint(folder, bert.state_dict(), small_vocabulary())
    if format == "torch legacy":
        torch.save(bert.state_dict(), folder / "pretrained.params", _use_new_zipfile_serialization=False)
    elif format == "mxnet":
        arrays = {name: value.numpy() for name, value in bert.state_dict().items()}
        write_v3(folder / "pretrained.params", rename_to_mxnet(arrays))
    return folder


class Calls:
    """An object that calls `function` when it is unpickled."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@contextmanager
def soft_limit(kind: int, value: int) -> Iterator[None]:
    """Lower a resource limit of this process."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def limit_new_memory(number_of_bytes: int):
    """Let this process allocate at most `number_of_bytes` more than it has. Without effect if there is no `/proc`."""
    if not Path("/proc/self/statm").exists():
        return nullcontext()
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return soft_limit(resource.RLIMIT_AS, in_use + number_of_bytes)


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)


def save_object(make: Callable[[], object], new: bool = True) -> Callable[[Path], None]:
    return lambda folder: torch.save(make(), folder / "pretrained.params", _use_new_zipfile_serialization=new)


add_repeated_number = change_state_dict(
    lambda state: state.update({"mlm.mlp.3.weight": torch.zeros(1).expand(10**6, 10**6)})
)


def add_millions_of_labels(folder: Path) -> None:
    """Save a classifier with as many labels as a file of 20 MB has room for."""
    state = torch.load(folder / "pretrained.params", weights_only=True)
    state = {name: value for name, value in state.items() if not name.startswith(("mlm", "nsp"))}
    state["output.weight"], state["output.bias"] = torch.zeros(20_000_000, 1, dtype=torch.int8), torch.zeros(1)
    torch.save(state, folder / "pretrained.params")


def compress_members(folder: Path) -> None:
    """Compress the members of a PyTorch file. Such a file can be small and claim to hold gigabytes."""
    original = zipfile.ZipFile(folder / "pretrained.params")
    members = {info.filename: original.read(info) for info in original.infolist()}
    with zipfile.ZipFile(folder / "pretrained.params", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def add_duplicate_member(folder: Path) -> None:
    with zipfile.ZipFile(folder / "pretrained.params", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"other")


def flip_byte(folder: Path) -> None:
    path = folder / "pretrained.params"
    content = bytearray(path.read_bytes())
    content[content.index(b"data/0") + 1000] ^= 0xFF
    path.write_bytes(content)


def set_one_weight(value: float) -> Callable[[Path], None]:
    return change_state_dict(lambda state: state["encoder.blks.1.ffn.dense1.weight"].__setitem__((3, 5), value))


def claim_terabytes(folder: Path) -> None:
    """Save a file in PyTorch's legacy format that claims a storage of 10¹² numbers and holds 7."""
    torch.save({"a": torch.zeros(7)}, folder / "pretrained.params", _use_new_zipfile_serialization=False)
    content = (folder / "pretrained.params").read_bytes()
    claimed = content.replace(b"K\x07", b"\x8a\x06" + (10**12).to_bytes(6, "little"))
    assert claimed != content
    (folder / "pretrained.params").write_bytes(claimed)


MALICIOUS = {
    "a pickle that calls os.system": (
        write("pretrained.params", pickle.dumps({"a": Calls(os.system, "touch ran")})),
        "not a plain PyTorch state_dict|cannot be read as a PyTorch checkpoint",
    ),
    "a pickle that calls os.system, PyTorch zip": (
        save_object(lambda: {"a": Calls(os.system, "touch ran")}),
        r"it contains posix\.system",
    ),
    "a pickle that calls os.system, legacy format": (
        save_object(lambda: {"a": Calls(os.system, "touch ran")}, new=False),
        r"it contains posix\.system",
    ),
    "a whole pickled network": (save_object(lambda: torch.nn.Linear(2, 2)), r"it contains torch\.nn\.modules"),
    "a bytearray of gigabytes": (
        save_object(lambda: {"a": Calls(bytearray, 2**35)}, new=False),
        r"it contains .*bytearray",
    ),
    "float8": (save_object(lambda: {"a": torch.zeros(3).to(torch.float8_e4m3fn)}), "not a plain PyTorch state_dict"),
    "millions of labels": (add_millions_of_labels, "its output layer has 20,000,000 rows"),
    "a name that writes to the terminal": (
        change_state_dict(lambda state: state.update({"encoder.x\nall is well\x1b[31m": torch.zeros(1)})),
        r"unexpected tensors: encoder.x\\nall is well\\x1b\[31m",
    ),
    "a name of a million characters": (
        change_state_dict(lambda state: state.update({"x" * 10**6: torch.zeros(1)})),
        "xxx[.]{3}$",
    ),
    "one number expanded to a large tensor": (add_repeated_number, "claims more numbers than the file has"),
    "compressed members": (compress_members, "its members are compressed"),
    "duplicate member": (add_duplicate_member, "two members have the same name"),
    "one flipped byte": (flip_byte, "checksum of"),
    "a claim of terabytes, legacy format": (claim_terabytes, "cannot be read as a PyTorch checkpoint"),
    "sparse": (save_object(lambda: {"a": torch.eye(3).to_sparse()}), "not a plain PyTorch state_dict"),
    "complex": (save_object(lambda: {"a": torch.zeros(3, dtype=torch.complex64)}), "not a plain PyTorch state_dict"),
    "on the meta device": (save_object(lambda: {"a": torch.zeros(3, device="meta")}), "not a plain PyTorch state_dict"),
    "NaN": (set_one_weight(float("nan")), "NaN or infinite values in encoder.blks.1.ffn.dense1.weight; "),
    "infinity": (set_one_weight(float("inf")), "NaN or infinite values in encoder.blks.1.ffn.dense1.weight; "),
    "a web page": (
        write("pretrained.params", b"\n<!DOCTYPE html><html>Not found</html>"),
        "is a web page and not a checkpoint",
    ),
    "an empty file": (write("pretrained.params", b""), "pretrained.params: the file is empty; get it again"),
    "text": (write("pretrained.params", b"404: Not Found"), "pretrained.params: "),
    "wrong magic": (write("pretrained.params", struct.pack("<QQQ", 0x113, 0, 0)), "pretrained.params: "),
    "vocabulary is a dict": (write("vocab.json", b'{"<unk>": 0}'), "give a list of tokens"),
    "vocabulary is not UTF-8": (write("vocab.json", b'["\xff"]'), "not JSON in UTF-8"),
    "vocabulary is not JSON": (write("vocab.json", b"<unk>\n<pad>\n"), "not JSON"),
    "vocabulary nested too deeply": (write("vocab.json", b"[" * 10**6), "not JSON"),
    "vocabulary with half of a surrogate pair": (
        write("vocab.json", rb'["<unk>", "\ud800"]'),
        "a text that UTF-8 can encode",
    ),
    "vocabulary larger than the limit": (
        lambda folder: (folder / "vocab.json").write_text(json.dumps(["x" * 1000] * (MAX_VOCABULARY_BYTES // 1000))),
        "too large for a vocabulary",
    ),
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_malicious_source_is_rejected_in_one_line_and_leaves_no_files(
    case: str, d2l_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    change, message = MALICIOUS[case]
    change(d2l_checkpoint)
    with limit_new_memory(2**30):
        assert main(["convert", d2l_checkpoint.name, "--output_dir", "model", "--num_attention_heads", "2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == [d2l_checkpoint]


def write_archive(folder: Path, d2l_checkpoint: Path, names: list[str]) -> Path:
    """Write a zip file of the files `names` in `d2l_checkpoint`."""
    with zipfile.ZipFile(folder / "bert.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(d2l_checkpoint / name, name)
    return folder / "bert.zip"


def test_zip_bomb_is_rejected_in_one_line(d2l_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write_archive(tmp_path, d2l_checkpoint, ["vocab.json"])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other/pretrained.params", bytes(10**8))
    assert main(["convert", str(path), "--output_dir", str(tmp_path / "m")]) == 2
    error = capsys.readouterr().err
    assert "would unpack to 100,000,000 bytes" in error and error.count("\n") == 1, error
    assert sorted(tmp_path.iterdir()) == [path, d2l_checkpoint]


@pytest.mark.parametrize("name", ["../../evil", "{folder}/evil", "C:\\evil", "a symbolic link"])
def test_malicious_member_of_an_archive_is_not_unpacked(name: str, d2l_checkpoint: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    Path(tempfile.tempdir).mkdir()
    path = write_archive(tmp_path, d2l_checkpoint, ["vocab.json", "pretrained.params"])
    member = zipfile.ZipInfo(name.format(folder=tmp_path))
    if name == "a symbolic link":
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, "/etc/passwd")
    convert_checkpoint(path, tmp_path / "model", num_attention_heads=2)
    assert sorted(tmp_path.iterdir()) == sorted([path, d2l_checkpoint, tmp_path / "model", tmp_path / "temporary"])
    assert list(Path(tempfile.tempdir).iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_checkpoint_is_rejected_at_every_percent(format: str, reference_bert: ReferenceBERT, tmp_path: Path):
    source = save(tmp_path / "d2l", reference_bert, format)
    whole = (source / "pretrained.params").read_bytes()
    for percent in range(100):
        (source / "pretrained.params").write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(BertSnliError) as caught:
            convert_checkpoint(source, tmp_path / "model", num_attention_heads=2)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "model").exists()


FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MUTATIONS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)


@pytest.mark.parametrize("format", FORMATS)
@FUZZ
@given(mutations=MUTATIONS, near_the_start=st.booleans())
def test_reader_raises_only_its_own_error_for_changed_bytes(
    format: str, mutations: list, near_the_start: bool, reference_bert: ReferenceBERT, tmp_path: Path
):
    """Readers either return arrays or raise `BertSnliError`."""
    source = tmp_path / "d2l"
    if not source.exists():
        save(source, reference_bert, format)
        (tmp_path / "original").write_bytes((source / "pretrained.params").read_bytes())
    content = (tmp_path / "original").read_bytes()
    path = tmp_path / "changed.params"
    path.write_bytes(mutate(content, mutations, 4000 if near_the_start else len(content)))
    read_or_reject(path)


@pytest.fixture(scope="module")
def zip_members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The members of a PyTorch zip file with three tensors."""
    path = tmp_path_factory.mktemp("members") / "small.params"
    torch.save({"a": torch.ones(3), "b": torch.zeros(2, 2).half(), "c": torch.arange(4)}, path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@FUZZ
@given(mutations=MUTATIONS)
def test_reader_raises_only_its_own_error_for_changed_pickle(mutations: list, zip_members: dict, tmp_path: Path):
    """The zip's checksums are those of the changed pickle, as an attacker would write them."""
    path = tmp_path / "changed.params"
    with zipfile.ZipFile(path, "w") as target:
        for name, content in zip_members.items():
            target.writestr(name, mutate(content, mutations, len(content)) if name.endswith("data.pkl") else content)
    read_or_reject(path)


def mutate(content: bytes, mutations: list, reach: int) -> bytes:
    changed = bytearray(content)
    for position, byte in mutations:
        changed[int(position * reach)] = byte
    return bytes(changed)


def read_or_reject(path: Path) -> None:
    try:
        checkpoint = read_checkpoint(path)
        assert all(array.nbytes <= path.stat().st_size for array in checkpoint.arrays.values())
    except BertSnliError:
        pass


@FUZZ
@given(
    content=st.binary(max_size=400), start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x12\x01" + bytes(14)])
)
def test_random_bytes_are_rejected(content: bytes, start: bytes, tmp_path: Path):
    path = tmp_path / "x.params"
    path.write_bytes(start + content)
    with pytest.raises(BertSnliError):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "moment",
    [
        "conversion.convert.prove",
        "conversion.convert.Certificate.write",
        "os.rename",
    ],
)
def test_output_folder_does_not_exist_before_conversion_is_complete(
    moment: str, d2l_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """List the files when `moment` is called. A process that is killed then leaves exactly these files."""
    output, files = tmp_path / "out" / "model", []

    def list_files(*_: object, **__: object) -> None:
        files.extend(path.relative_to(output.parent) for path in output.parent.rglob("*"))
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, list_files)
    assert main(["convert", str(d2l_checkpoint), "--num_attention_heads", "2", "--output_dir", str(output)]) == 130
    assert {path.name for path in files} >= {"model.safetensors", "config.json"}
    (folder,) = {path.parts[0] for path in files}
    assert folder.startswith(".partial-")


def test_ctrl_c_prints_one_line_and_leaves_no_files(d2l_checkpoint: Path, tmp_path: Path, capsys, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("conversion.convert.prove", interrupt)
    command = ["convert", str(d2l_checkpoint), "--num_attention_heads", "2", "--output_dir", str(tmp_path / "model")]
    assert main(command) == 130
    assert capsys.readouterr().err == "bert-snli convert: interrupted\n"
    assert list(tmp_path.iterdir()) == [d2l_checkpoint]


@pytest.mark.parametrize("command", ["convert", "d2l-torch", "d2l-mxnet"])
def test_full_disk_is_reported_in_one_line_and_leaves_no_files(
    command: str, d2l_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """A limit on the size of files replaces the full disk: in both cases a write fails with an `OSError`."""
    output = tmp_path / "out"
    arguments = ["convert", str(d2l_checkpoint), "--num_attention_heads", "2"]
    if command != "convert":
        convert_checkpoint(d2l_checkpoint, tmp_path / "model", num_attention_heads=2)
        arguments = ["export", str(tmp_path / "model"), "--format", command]
    before = sorted(tmp_path.iterdir())
    with soft_limit(resource.RLIMIT_FSIZE, 20_000):  # Python ignores SIGXFSZ
        assert main([*arguments, "--output_dir", str(output)]) == 2
    error = capsys.readouterr().err
    assert f"error: {output}: cannot be written (" in error and "File too large" in error, error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
