"""The CUDA branches of training, evaluation and prediction, on fake tensors: devices, dtypes, host synchronisation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import fake_cuda
from tests.support.fake_cuda.cases import CASES

pytestmark = pytest.mark.skipif(not fake_cuda.is_supported(), reason="needs Linux and g++")
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What became of each case; all run in one process, because PyTorch takes seconds to import."""
    path = tmp_path_factory.mktemp("fake_cuda") / "results.json"
    command = [sys.executable, "-m", "tests.support.fake_cuda.cases", str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, env=fake_cuda.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.xdist_group("fake_cuda")
@pytest.mark.parametrize("case", CASES)
def test_fake_cuda_runs(case: str, results: dict[str, str | None]):
    assert results[case] is None, results[case]
