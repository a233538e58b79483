"""File names, and functions to read, write, lock and check files and folders."""

import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from bert_snli.errors import BertSnliError, one_line

# Files of a model folder.
CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer.json", "README.md"
ONNX_FILE = "model.onnx"
HUB_ONNX_FILES = ("onnx/model.onnx", "onnx/model_int8.onnx")  # next to the weights, as on the Hub
CERTIFICATE = "conversion_certificate.json"  # describes the conversion of the folder
INITIAL_CERTIFICATE = "start_conversion_certificate.json"  # describes the conversion of the base model
HISTORY = "provenance.md"  # training history; that of `pairs.jsonl` is `pairs.jsonl.provenance.md`
# Files that training adds.
RECIPE_FILE, TRAIN_RESULTS, METRICS, CURVE = "recipe.yaml", "train_results.json", "metrics.jsonl", "curve.png"
# Files that evaluation adds.
EVALUATIONS, CONFUSION_MATRICES = "eval_results_*.json", "confusion_matrix_*.png"
EVALUATION_REPORT = "report/report.md"
# Files of a d2l checkpoint.
PARAMS, VOCABULARY = "pretrained.params", "vocab.json"


def is_evaluation(entry: Mapping[str, Any]) -> bool:
    """Return whether a line of `metrics.jsonl` describes an evaluation. Other lines describe updates."""
    return "eval_loss" in entry


def looks_like_path(name_or_path: str) -> bool:
    """Return whether a name that does not exist on this machine looks like a path, and not like a Hub id."""
    parent = Path(name_or_path).parent
    has_parent = parent != Path(".") and parent.is_dir()
    return name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1 or has_parent


def history_file(source: Path) -> Path:
    """Return the file with the training history of a model folder or of a file of pairs."""
    return source / HISTORY if source.is_dir() else source.with_name(f"{source.name}.{HISTORY}")


def read_history(source: Path) -> list[str]:
    """Return the training history of a model or of a file of pairs, or an empty list if there is none."""
    lines = read_file(history_file(source), str.splitlines) or []
    return [line.removeprefix("- ") for line in lines if line]


def read_file(path: Path, parse: Callable[[str], Any]) -> Any:
    """Read and parse a file. Return None if it does not exist. Raise `BertSnliError` if it is damaged."""
    if not path.is_file():
        return None
    try:
        return parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise BertSnliError(f"{path}: cannot be read ({one_line(error)}); correct or remove it") from error


def read_json(path: Path) -> dict:
    """Read a JSON object. Return an empty one if the file does not exist."""
    return read_file(path, lambda text: {**json.loads(text)}) or {}


def write_history(source: Path, steps: Sequence[str]) -> None:
    """Write the training history of `source`, one line for each step."""
    write_atomically(history_file(source), "".join(f"- {' '.join(step.split())}\n" for step in steps))


def check_output_dir(folder: Path, *, overwrite: bool | None = None, model: Path | None = None) -> None:
    """Raise `BertSnliError` if `folder` is a file, is the folder `model`, or holds files and `overwrite` is not set.

    `overwrite` is the caller's `overwrite_output_dir`, or None if the caller has no such parameter.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise BertSnliError(f"{existing}: is a file; give a folder")
    if model and folder.resolve() == model.resolve():
        raise BertSnliError(f"{folder}: is the model folder itself; give another folder")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        alternative = "" if overwrite is None else " or set overwrite_output_dir"
        raise BertSnliError(f"{folder}: already holds files; give another folder{alternative}")


@contextmanager
def atomic_folder(folder: Path, *, overwrite: bool | None = None) -> Iterator[Path]:
    """Yield a temporary folder. Its files are moved into `folder` when the block ends without an error.

    With `overwrite`, files of the same name are replaced, and all other files in `folder` stay.
    """
    check_output_dir(folder, overwrite=overwrite)
    exists = folder.is_dir()
    with explain_write_errors(folder):
        # Files can only be moved within one file system, and `folder` may be a mounted one.
        parent = folder if exists else folder.parent
        parent.mkdir(parents=True, exist_ok=True)
        temporary = parent / f".partial-{secrets.token_hex(8)}"
        temporary.mkdir()
        try:
            yield temporary
            # `mkdir` applied the umask. Python cannot read the umask without changing it for all threads.
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
    """Yield a temporary path. The file written there replaces `path` when the block ends without an error.

    If the process is killed earlier, the old file stays unchanged.
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
    """Write a text file atomically: a reader never sees an incomplete file, even if the process is killed."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush_to_disk(path: Path) -> None:
    """Flush a file or a folder to the disk (`fsync`), so that it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create `folder` and lock it until the block ends. Raise `BertSnliError` if another run has locked it."""
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # FileLock reports a folder without write permission as locked
        try:
            with FileLock(folder / ".lock", timeout=0):
                yield
        except Timeout as error:
            raise BertSnliError(f"{folder}: another run is writing there; wait for it, or stop it") from error


@contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Turn an error of writing files into a `BertSnliError` that names `folder`. Connection errors stay unchanged."""
    try:
        yield
    except ConnectionError:
        raise
    except (OSError, SafetensorError) as error:
        reason = f"cannot be written ({getattr(error, 'strerror', None) or error})"
        raise BertSnliError(f"{folder}: {reason}; give another folder, or free disk space") from error


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
