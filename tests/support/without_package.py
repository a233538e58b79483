"""A Python in which `bert_snli` cannot be imported: what somebody has who only downloaded a model folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# None in `sys.modules` makes an import fail even where the package is installed.
PRELUDE = """
import json, sys
for name in ("bert_snli", "conversion"):
    sys.modules[name] = None
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(f"{name} can be imported")
arguments = json.loads(sys.argv[1])
"""


def clean_environment(home: Path, hub: str | None = None) -> dict[str, str]:
    """The environment without what Python and the hub's libraries read from it; caches lie in `home`.

    The hub is at the address `hub`, or out of reach.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    reach = {"HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1"} if hub else {"HF_HUB_OFFLINE": "1"}
    return {**kept, "HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), **reach}


def run_without_package(script: str, tmp_path: Path, hub: str | None = None, **arguments: Any) -> Any:
    """Run `script`, which finds `arguments` (JSON) under that name, and return the JSON of its last printed line.

    It reaches the hub at the address `hub`, if that is given, and has nothing of it in its cache.
    """
    home = tmp_path / "elsewhere"
    home.mkdir()
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
