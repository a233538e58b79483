"""Download the model tests of the installed `transformers` from the package index: `python -m tests.conformance.fetch`.

The wheel does not contain them; the source distribution does. Nothing of it is run here.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urljoin
from urllib.request import urlopen

VERSION = version("transformers")
SOURCES = Path(__file__).resolve().parents[2] / ".cache" / f"transformers-{VERSION}"
PACKAGE = SOURCES / "transformers_tests"  # not `tests`, which is the name of our own tests


def index_url() -> str:
    """Return the package index that pip is configured to use."""
    pip = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    configured = subprocess.run(pip, capture_output=True, text=True).stdout.strip()
    return os.environ.get("PIP_INDEX_URL") or configured or "https://pypi.org/simple"


def download() -> bytes:
    """Download the source distribution and check the SHA-256 that the index gives (PEP 503)."""
    page = f"{index_url().rstrip('/')}/transformers/"
    with urlopen(page, timeout=60) as response:
        links = response.read().decode()
    name = re.escape(f"transformers-{VERSION}.tar.gz")
    link = re.search(rf'href="([^"#]*{name})#sha256=([0-9a-f]{{64}})', links)
    if link is None:
        raise SystemExit(f"{page}: no transformers-{VERSION}.tar.gz with a SHA-256; set PIP_INDEX_URL to another index")
    with urlopen(urljoin(page, link[1]), timeout=60) as response:
        archive = response.read()
    if hashlib.sha256(archive).hexdigest() != link[2]:
        raise SystemExit(f"{link[1]}: the SHA-256 differs from the one in the index; try again")
    return archive


def main() -> None:
    if PACKAGE.is_dir():
        return
    SOURCES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SOURCES) as temporary:
        with tarfile.open(fileobj=io.BytesIO(download())) as archive:
            tests = [member for member in archive if re.match(r"[^/]+/tests/", member.name)]
            archive.extractall(temporary, tests, filter="data")
        (extracted,) = Path(temporary).glob("*/tests")
        (extracted / "__init__.py").touch()
        extracted.rename(PACKAGE)
    print(f"The tests of transformers {VERSION} are in {PACKAGE}")


if __name__ == "__main__":
    main()
