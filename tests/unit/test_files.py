"""Atomic writes of files and folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bert_snli.errors import BertSnliError
from bert_snli.files import atomic_folder, check_output_dir, write_atomically


def test_failed_write_leaves_the_old_file(tmp_path: Path):
    write_atomically(tmp_path / "file", "first")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "file", "second \ud800")
    assert (tmp_path / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("umask", "folder_mode", "file_mode"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)])
@pytest.mark.parametrize("exists", [False, True])
def test_atomic_folder_follows_the_umask_without_changing_it(
    umask: int, folder_mode: int, file_mode: int, exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A change of the umask, even for a moment, changes the mode of files that other threads create."""
    output = tmp_path / "model"
    before = os.umask(umask)
    try:
        if exists:
            output.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda mask: pytest.fail("os.umask was called"))
            with atomic_folder(output) as folder:
                save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
                (folder / "onnx").mkdir()
                (folder / "onnx" / "config.json").write_text("{}")
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {
        "model": folder_mode,
        "model/model.safetensors": file_mode,
        "model/onnx": folder_mode,
        "model/onnx/config.json": file_mode,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overwrite": False}, "{}: already holds files; give another folder or set overwrite_output_dir"),
        ({}, "{}: already holds files; give another folder"),
        ({"overwrite": True}, None),
    ],
)
def test_output_folder_with_files_is_refused_unless_it_may_be_overwritten(
    options: dict, message: str | None, tmp_path: Path
):
    (tmp_path / "file").touch()
    if message is None:
        check_output_dir(tmp_path, **options)
    else:
        with pytest.raises(BertSnliError) as error:
            check_output_dir(tmp_path, **options)
        assert str(error.value) == message.format(tmp_path)
    with pytest.raises(BertSnliError, match="file: is a file; give a folder"):
        check_output_dir(tmp_path / "file" / "run", **options)
