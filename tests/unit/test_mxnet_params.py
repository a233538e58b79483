"""The reader of MXNet's files, on files that MXNet 1.9.1 wrote (`tests/support/mxnet_files`) and on generated files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from bert_snli.errors import BertSnliError
from conversion.checkpoint import read_checkpoint
from conversion.convert import convert_checkpoint
from conversion.mxnet_params import write_mxnet_checkpoint
from tests.support.checkpoints import save_d2l_checkpoint, small_vocabulary
from tests.support.mxnet_writer import FLAGS, MAGICS, encode_array, encode_list, rename_to_mxnet, write_v3

FILES = Path(__file__).parents[1] / "support" / "mxnet_files"


def read_all(path: Path) -> dict[str, np.ndarray]:
    checkpoint = read_checkpoint(path)
    assert checkpoint.framework == "mxnet"
    return checkpoint.arrays


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("name", ["v2_dict", "v2_module", "v3_dtypes", "v3_odd"])
def test_files_written_by_mxnet_are_read_exactly(name: str):
    expected = {key.split(":")[-1]: array for key, array in np.load(FILES / f"{name}.npz").items()}
    assert_same(read_all(FILES / f"{name}.params"), expected)


@pytest.mark.parametrize(("name", "message"), [("v2_sparse", "holds a sparse array"), ("v3_list", "0 names for")])
def test_sparse_and_unnamed_arrays_of_mxnet_are_rejected(name: str, message: str):
    with pytest.raises(BertSnliError, match=message):
        read_checkpoint(FILES / f"{name}.params")


def arrays_of_all_dtypes() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {dtype: (generator.normal(size=(3, 1, 5)) * 9).astype(dtype) for dtype in FLAGS}


@pytest.mark.parametrize("device", [(1, 0), (2, 3), (3, 0), (77, -1)])
@pytest.mark.parametrize("version", MAGICS)
def test_every_format_version_dtype_and_device_is_read(version: str, device: tuple[int, int], tmp_path: Path):
    arrays = arrays_of_all_dtypes()
    path = tmp_path / "x.params"
    path.write_bytes(encode_list([encode_array(array, version, device) for array in arrays.values()], list(arrays)))
    assert_same(read_all(path), arrays)


def test_written_file_equals_file_of_second_writer(tmp_path: Path):
    arrays = arrays_of_all_dtypes()
    write_v3(tmp_path / "expected", arrays)
    write_mxnet_checkpoint(tmp_path / "written", arrays)
    assert (tmp_path / "written").read_bytes() == (tmp_path / "expected").read_bytes()


@pytest.mark.parametrize("prefix", ["", "arg:", "aux:"])
def test_checkpoint_with_name_prefixes_converts(prefix: str, reference_bert, tmp_path: Path):
    state = {name: value.numpy() for name, value in reference_bert.state_dict().items()}
    source = save_d2l_checkpoint(tmp_path / "d2l", {}, small_vocabulary())
    named = {prefix + name: value for name, value in rename_to_mxnet(state).items()}
    write_v3(source / "pretrained.params", named)
    done = convert_checkpoint(source, tmp_path / "model", num_attention_heads=2)
    assert {record["source"]["name"] for record in done.tensors} == named.keys()


ONE = encode_array(np.ones(2, np.float32))
HEADER = struct.pack("<QQ", 0x112, 0)


def array_with(shape: list[int], flag: int = 0, ndim: int | None = None, magic: int = MAGICS["V3"]) -> bytes:
    """Return a file with one array whose header says `shape` and which has no data."""
    ndim = len(shape) if ndim is None else ndim
    body = struct.pack(f"<Iii{len(shape)}qiii", magic, 0, ndim, *shape, 1, 0, flag)
    return HEADER + struct.pack("<Q", 1) + body + struct.pack("<QQ1s", 1, 1, b"a")


NO_DATA = {
    "V2": struct.pack("<Iii", MAGICS["V2"], 0, 0),
    "V3": struct.pack("<Iii", MAGICS["V3"], 0, -1),
}
MALFORMED_FILES = {
    "nothing after the magic": (HEADER[:8], "ends too early"),
    "no arrays": (encode_list([], []), "0 names for 0 arrays"),
    "no names": (encode_list([ONE], []), "0 names for 1 arrays"),
    "too few names": (encode_list([ONE, ONE], ["a"]), "1 names for 2 arrays"),
    "duplicate name": (encode_list([ONE, ONE], ["a", "a"]), "two arrays have the name 'a'"),
    "names that differ only in the prefix": (
        encode_list([ONE, ONE], ["arg:a", "aux:a"]),
        "two arrays have the name 'a'",
    ),
    "name longer than the file": (
        encode_list([ONE], ["a"])[:-9] + struct.pack("<Q", 2**63) + b"a",
        "ends too early",
    ),
    "bytes after the end": (encode_list([ONE], ["a"]) + b"x", "1 bytes after the end"),
    "too many arrays": (HEADER + struct.pack("<Q", 2**62), "ends too early"),
    "array of a terabyte": (array_with([2**38]), r"impossible shape \(274877906944,\)"),
    "size that overflows": (array_with([2**62, 2**62]), "impossible shape"),
    "negative shape": (array_with([-3]), "impossible shape"),
    "negative number of dimensions": (array_with([], ndim=-7), "-7 dimensions"),
    "too many dimensions": (array_with([], ndim=2**30), "1,073,741,824 dimensions"),
    "unknown magic": (array_with([2], magic=0xDEADBEEF), "not in MXNet's format V2 or V3"),
    "unknown dtype": (array_with([0], flag=12), "unknown dtype 12"),
    "V2 without data": (encode_list([NO_DATA["V2"]], ["a"]), "'a' has no data"),
    "V3 without data": (encode_list([NO_DATA["V3"]], ["a"]), "'a' has no data"),
}


@pytest.mark.parametrize("case", MALFORMED_FILES)
def test_malformed_file_is_rejected_in_one_line(case: str, tmp_path: Path):
    content, message = MALFORMED_FILES[case]
    path = tmp_path / "x.params"
    path.write_bytes(content)
    with pytest.raises(BertSnliError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_name_that_is_not_utf8_is_read_with_a_replacement_character(tmp_path: Path):
    path = tmp_path / "x.params"
    path.write_bytes(encode_list([ONE], ["a"])[:-1] + b"\xff")
    assert list(read_all(path)) == ["\ufffd"]
