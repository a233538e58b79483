"""Download d2l's own checkpoints into the assets cache of the Hub, and check their SHA-1."""

import hashlib
from pathlib import Path

from huggingface_hub import cached_assets_path, constants
from huggingface_hub.file_download import http_get

from bert_snli.errors import BertSnliError, one_line
from bert_snli.files import replace_file
from conversion.d2l_layout import MXNET, PYTORCH

BASE_URL = "http://d2l-data.s3-accelerate.amazonaws.com"  # the server has no HTTPS, so the SHA-1 protects the files
ARCHIVES = {  # (name, framework) → file and its SHA-1
    ("bert.small", PYTORCH): ("bert.small.torch.zip", "c72329e68a732bef0452e4b96a1c341c8910f81f"),
    ("bert.small", MXNET): ("bert.small.zip", "a4e718a47137ccd1809c9107ab4f5edd317bae2c"),
    ("bert.base", PYTORCH): ("bert.base.torch.zip", "225d66f04cae318b841a13d32af3acc165f253ac"),
    ("bert.base", MXNET): ("bert.base.zip", "7b3820b35da691042e5d34c0971ac3edbd80d3f4"),
}
CHECKPOINT_NAMES = sorted({name for name, _ in ARCHIVES})


def download_checkpoint(name: str, framework: str) -> Path:
    """Return the zip file of d2l's checkpoint `name`, from the cache or from d2l's server."""
    if (name, framework) not in ARCHIVES:
        raise BertSnliError(f"framework {framework}: choose {PYTORCH} or {MXNET}")
    file_name, sha1 = ARCHIVES[name, framework]
    url = f"{BASE_URL}/{file_name}"
    try:
        path = cached_assets_path("bert-snli", "downloads", "d2l", assets_dir=constants.HF_ASSETS_CACHE) / file_name
        if path.is_file() and _sha1_of(path) == sha1:
            return path
        with replace_file(path) as temporary:
            with temporary.open("wb") as file:
                http_get(url, file)
            if (found := _sha1_of(temporary)) != sha1:
                raise BertSnliError(f"the downloaded file has SHA-1 {found}, d2l's file has {sha1}")
    except Exception as error:  # each HTTP library has its own exceptions
        raise BertSnliError(
            f"{url}: {one_line(error)}; run the command again, set HF_HOME if its folder cannot be written, or "
            "download the file yourself and give its path"
        ) from error
    return path


def _sha1_of(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
