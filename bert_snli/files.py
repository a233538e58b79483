"""File names, SHA-256 of files, atomic writes, and checks of output folders."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bert_snli.errors import BertSnliError

# Files of a model folder.
CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer.json", "README.md"
ONNX_FILE = "model.onnx"
CERTIFICATE = "conversion_certificate.json"  # how a folder was converted
INITIAL_CERTIFICATE = "start_conversion_certificate.json"  # how the checkpoint that training began with was converted
# Files that training adds.
RECIPE_FILE, TRAIN_RESULTS, METRICS, CURVE = "recipe.yaml", "train_results.json", "metrics.jsonl", "curve.png"
# Files that evaluation adds.
EVALUATIONS, CONFUSION_MATRICES = "eval_results_*.json", "confusion_matrix_*.png"
EVALUATION_REPORT = "report/report.md"
# Files of a d2l checkpoint.
PARAMS, VOCABULARY = "pretrained.params", "vocab.json"

OUTPUT_DIR = "--output_dir"


def looks_like_path(name_or_path: str) -> bool:
    """Whether a name that is no file or folder was meant as one, rather than as an id on the hub."""
    parent = Path(name_or_path).parent
    return (
        name_or_path.startswith((".", "/", "~"))
        or name_or_path.count("/") > 1
        or (parent != Path(".") and parent.is_dir())
    )


def check_output_dir(folder: Path, *, overwrite: bool, option: str = OUTPUT_DIR) -> None:
    """Refuse a file, and a folder that already holds something unless `overwrite` is set; `option` named the folder.

    Raises:
        BertSnliError: with the remedy.
    """
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        what = "is a file" if above == folder else f"{above} is a file"
        raise BertSnliError(f"{option} {folder}: {what}; name a folder")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        or_else = " or add --overwrite_output_dir" if option == OUTPUT_DIR else ""
        raise BertSnliError(f"{option} {folder}: already holds files; name another folder{or_else}")


def check_export_dir(folder: Path, model: Path, *, overwrite: bool) -> None:
    """As `check_output_dir`; and refuse the model's own folder.

    Raises:
        BertSnliError: with the remedy.
    """
    if folder.resolve() == model.resolve():
        raise BertSnliError(f"--output_dir {folder}: is the model itself; name another folder")
    check_output_dir(folder, overwrite=overwrite)


@contextmanager
def atomic_folder(folder: Path, *, overwrite: bool = False, option: str = OUTPUT_DIR) -> Iterator[Path]:
    """Yield a temporary folder whose files come to be in `folder` only when the block ends without an error.

    With `overwrite`, files of the same name are replaced and all others in `folder` are left alone.

    Raises:
        BertSnliError: `folder` is a file, holds something already, or cannot be written.
    """
    check_output_dir(folder, overwrite=overwrite, option=option)
    exists = folder.is_dir()
    # On the file system of the folder itself, which may be a mounted one, so that the files can be moved.
    beside = folder if exists else folder.parent
    with explain_write_errors(folder, option):
        beside.mkdir(parents=True, exist_ok=True)
        temporary = make_temporary_folder(beside)
    try:
        with explain_write_errors(folder, option):
            yield temporary
            # `mkdir` applied the umask. Reading the umask itself means changing it for all threads for a moment.
            mode = stat.S_IMODE(temporary.stat().st_mode)
            for path in temporary.rglob("*"):
                path.chmod(mode if path.is_dir() else mode & 0o666)  # safetensors creates its files with mode 0600
                flush_to_disk(path)
            if exists:
                for path in temporary.iterdir():
                    os.replace(path, folder / path.name)
            else:
                os.rename(temporary, folder)
            flush_to_disk(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; its file, flushed to the disk, replaces `path` when the block ends without an error.

    If the process is killed before, the old file stays unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically: a reader never finds half of it, even if the process is killed."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_temporary_folder(parent: Path) -> Path:
    """Make a folder with a unique name in `parent`, with the permissions that the umask allows, unlike `mkdtemp`."""
    folder = parent / f".partial-{secrets.token_hex(8)}"
    folder.mkdir()
    return folder


def create_output_dir(folder: Path) -> None:
    """Make `folder`, and see that files can be written in it.

    Raises:
        BertSnliError: they cannot.
    """
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder`, such as one of processes that outlived their launcher, until the block ends.

    Raises:
        BertSnliError: there is one.
    """
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise BertSnliError(f"{OUTPUT_DIR} {folder}: another run is writing there; wait for it, or end it") from error


@contextmanager
def explain_write_errors(folder: Path, option: str = OUTPUT_DIR) -> Iterator[None]:
    """Say plainly that a file cannot be written in `folder`, which `option` named.

    Raises:
        BertSnliError: in place of the system's error; not of one that a network or a closed terminal has.
    """
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        raise BertSnliError(
            f"{option} {folder}: cannot be written ({error.strerror or error}); name another folder, or make room"
        ) from error


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
