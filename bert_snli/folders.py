"""Output folders: nothing half-written, nothing of the user's overwritten unasked."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bert_snli.errors import BertSnliError


def check_output_dir(folder: Path, *, overwrite: bool) -> None:
    """Refuse a file, and a folder that already holds something unless `overwrite` is set.

    Raises:
        BertSnliError: with the remedy.
    """
    if folder.exists() and not folder.is_dir():
        raise BertSnliError(f"--output_dir {folder}: is a file; name a folder")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise BertSnliError(
            f"--output_dir {folder}: already holds files; name another folder or add --overwrite_output_dir"
        )


@contextmanager
def finished_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder whose files move into `folder` only when the block ends without an error.

    With `overwrite`, files of the same name are replaced and all others in `folder` are left alone.

    Raises:
        BertSnliError: `folder` is a file, holds something already, or cannot be written.
    """
    check_output_dir(folder, overwrite=overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise BertSnliError(
            f"--output_dir {folder}: cannot be written ({error.strerror}); name another folder"
        ) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        if folder.is_dir():
            for path in temporary.iterdir():
                _replace(path, folder / path.name)
        else:
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(source: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    os.replace(source, target)
