"""The source distribution and the wheel: their files, and commands where the repository cannot be imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.processes import REPOSITORY

PACKAGES = ("bert_snli", "conversion")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


def run(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command, which must succeed, and return its standard output."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def repository_files() -> set[str]:
    """The files of the repository, without those that git ignores."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY).splitlines()
    return {name for name in names if (REPOSITORY / name).is_file()}


@pytest.fixture(scope="module")
def sdist(repository_files: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built from a copy of the repository: setuptools writes into the source folder."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for name in repository_files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, source / name)
    return output / run(sys.executable, "-c", BUILD, output, cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution."""
    output = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", output]
    run(sys.executable, "-m", "pip", "wheel", *options, sdist)
    (path,) = output.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a virtual environment with the wheel and with the dependencies of this environment."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel)
    # Python does not read the .pth files in a folder that it finds through a .pth file: no editable installation.
    site_packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.mark.slow
def test_source_distribution_contains_every_file_of_the_repository(sdist: Path, repository_files: set[str]):
    with tarfile.open(sdist) as archive:
        names = {entry.name.partition("/")[2] for entry in archive if entry.isfile()}
    made_by_setuptools = {name for name in names if name.startswith("bert_snli.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert names - made_by_setuptools == repository_files


@pytest.mark.slow
def test_wheel_contains_every_file_of_the_packages(wheel: Path, repository_files: set[str]):
    sources = {name for name in repository_files if name.partition("/")[0] in PACKAGES}
    with zipfile.ZipFile(wheel) as archive:
        packaged = {name for name in archive.namelist() if name.partition("/")[0] in PACKAGES}
    assert packaged == sources


@pytest.mark.slow
def test_installed_commands_run_outside_the_repository(environment: Path, tmp_path: Path):
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def bert_snli(*arguments: object) -> str:
        return run(environment / "bert-snli", *arguments, cwd=tmp_path, env={**variables, "OMP_NUM_THREADS": "1"})

    code = (
        "import bert_snli.cli, bert_snli.hub, conversion, sys; print(*[sys.modules[n].__file__ for n in sys.argv[1:]])"
    )
    modules = ("bert_snli", "bert_snli.cli", "bert_snli.hub", "conversion")
    files = run(environment / "python", "-c", code, *modules, cwd=tmp_path, env=variables).split()
    assert len(files) == 4 and all(Path(file).is_relative_to(environment.parent) for file in files), files

    assert bert_snli("--version").strip() == version("bert-snli")
    assert bert_snli("config") == (REPOSITORY / "accelerate_config.yaml").read_text()
    assert "bert-snli finetune models/small" in bert_snli("quickstart")
    data = ["--dataset_name_or_path", "quickstart/mini_snli"]
    limits = ["--max_length", 40, "--max_steps", 1, "--max_eval_samples", 20]
    paths = ["--model_name_or_path", "quickstart/converted", "--output_dir", "run"]
    bert_snli("finetune", "--config", "d2l_book", *data, *paths, *limits)
    assert "optim: adam_torch\n" in (tmp_path / "run" / "recipe.yaml").read_text()
    bert_snli("evaluate", "quickstart/finetuned", *data, "--report", "report")
    assert (tmp_path / "report" / "report.html").is_file()
    bert_snli("push", "quickstart/finetuned", "--repo_id", "user/name", "--dry_run", "--output_dir", "staged")
    assert (tmp_path / "staged" / "README.md").is_file()


def test_packaged_accelerate_configuration_equals_the_one_of_the_repository():
    packaged = REPOSITORY / "bert_snli" / "accelerate_config.yaml"
    assert packaged.read_text() == (REPOSITORY / "accelerate_config.yaml").read_text()
