"""The book's own archives by name, fetched once into the assets of the hub's cache, checked against its SHA-1."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from huggingface_hub import cached_assets_path, constants
from huggingface_hub.file_download import http_get

from bert_snli.errors import BertSnliError
from conversion.d2l_layout import MXNET, PYTORCH

HOME = "http://d2l-data.s3-accelerate.amazonaws.com"


@dataclass(frozen=True)
class Archive:
    """A file on the book's server; plain HTTP is safe as far as SHA-1 is."""

    url: str
    sha1: str


ARCHIVES = {
    ("bert.small", PYTORCH): Archive(f"{HOME}/bert.small.torch.zip", "c72329e68a732bef0452e4b96a1c341c8910f81f"),
    ("bert.small", MXNET): Archive(f"{HOME}/bert.small.zip", "a4e718a47137ccd1809c9107ab4f5edd317bae2c"),
    ("bert.base", PYTORCH): Archive(f"{HOME}/bert.base.torch.zip", "225d66f04cae318b841a13d32af3acc165f253ac"),
    ("bert.base", MXNET): Archive(f"{HOME}/bert.base.zip", "7b3820b35da691042e5d34c0971ac3edbd80d3f4"),
}
NAMES = sorted({name for name, _ in ARCHIVES})


def fetch(name: str, framework: str) -> Path:
    """The archive of `name`, from the cache or from the book's server; a download that was cut off is gone on with.

    Raises:
        BertSnliError: it cannot be fetched, or what comes is not the book's file.
    """
    archive = ARCHIVES[name, framework]
    try:
        folder = cached_assets_path("bert-snli", "downloads", "d2l", assets_dir=constants.HF_ASSETS_CACHE)
        target = folder / archive.url.rpartition("/")[2]
        with FileLock(f"{target}.lock"):
            if not (target.is_file() and _sha1_of(target) == archive.sha1):
                _download(archive, Path(f"{target}.incomplete")).replace(target)
    except OSError as error:
        raise BertSnliError(
            f"{constants.HF_ASSETS_CACHE}: {error.strerror or error}; set HF_HOME to a folder that can be written"
        ) from error
    return target


def _download(archive: Archive, partial: Path) -> Path:
    """Fill `partial`, whose beginning may be there from an earlier try."""
    resumed = partial.is_file() and partial.stat().st_size > 0
    if not (resumed and _sha1_of(partial) == archive.sha1):
        try:
            with partial.open("ab") as file:
                http_get(archive.url, file, resume_size=file.tell())
        except Exception as error:  # whichever HTTP library the hub's client uses has its own
            status = getattr(getattr(error, "response", None), "status_code", None)
            if resumed and status == 416:  # there is nothing after what we have, and what we have is not it
                partial.unlink()
                return _download(archive, partial)
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BertSnliError(
                f"{archive.url}: {reason}; run the command again to go on, or download it yourself and give the file"
            ) from error
    found = _sha1_of(partial)
    if found == archive.sha1:
        return partial
    partial.unlink()
    if resumed:  # the beginning may have been another file's
        return _download(archive, partial)
    raise BertSnliError(
        f"{archive.url}: what came has SHA-1 {found}, the book's file has {archive.sha1}; try from another network"
    )


def _sha1_of(path: Path) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
