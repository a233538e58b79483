"""Run scripts in a process that has `transformers` but not `bert_snli`, like that of a user who downloads a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# This package, and its dependencies that `transformers` and torch do not need.
NOT_INSTALLED = "bert_snli conversion accelerate datasets evaluate matplotlib pyarrow scipy sklearn".split()
# None in `sys.modules` makes an import fail even where the package is installed.
PRELUDE = """
import json, sys
arguments = json.loads(sys.argv[1])
for name in arguments.pop("not_installed"):
    sys.modules[name] = None
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(f"{name} can be imported")
"""


def clean_environment(home: Path, hub: str | None = None) -> dict[str, str]:
    """Return the environment without the variables of Python and of the Hub's libraries, and with caches in `home`.

    The Hub is at the address `hub`; without one, the libraries are offline.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    access = {"HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1"} if hub else {"HF_HUB_OFFLINE": "1"}
    return {**kept, "HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), **access}


def run_without_package(
    script: str, tmp_path: Path, hub: str | None = None, *, also_without: Sequence[str] = (), **arguments: Any
) -> Any:
    """Run `script` and return the JSON value of the last line that it prints.

    Args:
        script: Python source. It finds the keyword arguments in the dictionary `arguments`.
        tmp_path: the process runs in a new subfolder of it, which also has the (empty) caches.
        hub: address of a Hub; without one, the process is offline.
        also_without: more packages that the process cannot import.
    """
    home = Path(tempfile.mkdtemp(dir=tmp_path))
    arguments["not_installed"] = [*NOT_INSTALLED, *also_without]
    done = subprocess.run(
        [sys.executable, "-I", "-c", PRELUDE + script, json.dumps(arguments)],
        cwd=home,
        env=clean_environment(home, hub),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
