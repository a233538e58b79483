"""The CUDA branches of training, evaluation and prediction, on fake tensors: devices, dtypes, host synchronisation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import fake_cuda
from tests.support.fake_cuda.cases import CASES
from tests.support.processes import REPOSITORY


@pytest.mark.skipif(not fake_cuda.is_supported(), reason="needs Linux, g++ and a CPU build of PyTorch")
def test_cuda_branches_run_on_fake_tensors(tmp_path: Path):
    """One process runs all cases, because PyTorch takes seconds to import; the message names those that failed."""
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "tests.support.fake_cuda.cases", str(results)]
    done = subprocess.run(command, cwd=REPOSITORY, env=fake_cuda.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found.keys() == CASES.keys()
    failed = {case: error for case, error in found.items() if error}
    assert not failed, f"{len(failed)} of {len(found)} cases: {', '.join(failed)}\n" + "\n".join(failed.values())
