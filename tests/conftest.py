"""Fixtures that several test modules share: small checkpoints, a generated corpus, trained models, the real data."""

# ruff: noqa: E402

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

# The libraries read these variables when they are first imported, which the imports below do.
os.environ["HF_HUB_OFFLINE"] = "1"  # no test uses the network
os.environ["ACCELERATE_USE_CPU"] = "1"  # the same numbers on a machine with a GPU
CACHE = tempfile.mkdtemp(prefix="bert-snli-tests-")  # files that an earlier run cached would hide faults
os.environ["HF_DATASETS_CACHE"] = CACHE
os.environ["TRACKIO_DIR"] = CACHE
os.environ["TORCHINDUCTOR_CACHE_DIR"] = CACHE  # its key does not contain ATEN_CPU_CAPABILITY
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes the programs that it starts with & ignore it

from conversion.convert import convert_checkpoint
from tests.support.checkpoints import SPECIALS, save_d2l_checkpoint, small_vocabulary
from tests.support.classifiers import save_random_classifier
from tests.support.d2l_reference import ReferenceBERT, ReferenceClassifier
from tests.support.finetuning import read_parsed_rows
from tests.support.processes import unused_port
from tests.support.real_data import real_data


@pytest.fixture(scope="session")
def snli_zip() -> Path:
    return real_data("data/snli/snli_1.0.zip")


@pytest.fixture(scope="session")
def snli_parquet() -> Path:
    return real_data("data/snli-hub")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated corpus in SNLI's layout."""
    from bert_snli.data.sample import write_sample

    return write_sample(tmp_path_factory.mktemp("corpus"), num_pairs={"train": 300, "dev": 60, "test": 60})


@pytest.fixture(scope="session")
def quickstart_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder that `bert-snli quickstart` writes in a minute. All workers of pytest-xdist share it: copy it."""
    from bert_snli.cli import main

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "quickstart"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            assert main(["quickstart", "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def vocabulary(corpus: Path) -> list[str]:
    """The tokens of the training split of `corpus`."""
    return SPECIALS + sorted({word for row in read_parsed_rows(corpus) for side in row[:2] for word in side})


@pytest.fixture(scope="session")
def wiki_lines(corpus: Path) -> list[str]:
    """The lines of a small text in the format of WikiText-2."""
    from tests.support.pretraining import make_wiki_lines

    return make_wiki_lines(corpus)


@pytest.fixture(scope="session")
def wiki(wiki_lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of WikiText-2, without its test split."""
    from tests.support.pretraining import write_wiki

    return write_wiki(wiki_lines, tmp_path_factory.mktemp("wiki"))


@pytest.fixture(scope="session")
def wiki_vocabulary(wiki_lines: list[str]) -> list[str]:
    return SPECIALS + sorted({word for line in wiki_lines for word in line.lower().split()})


@pytest.fixture(scope="session")
def classifier_weights(vocabulary: list[str]) -> dict[str, torch.Tensor]:
    """The weights of a d2l classifier, with its output layer."""
    torch.manual_seed(0)
    return ReferenceClassifier(ReferenceBERT(vocab=len(vocabulary))).state_dict()


@pytest.fixture(scope="session")
def base_model(classifier_weights, vocabulary: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted classifier with the weights `classifier_weights`."""
    folder = tmp_path_factory.mktemp("base_model")
    convert_checkpoint(
        save_d2l_checkpoint(folder / "book", classifier_weights, vocabulary), folder / "hf", num_attention_heads=2
    )
    return folder / "hf"


@pytest.fixture(scope="session")
def trained_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned model that labels the pairs of `tests.support.trained_classifier.KNOWN_PAIRS` correctly."""
    from tests.support.trained_classifier import train_classifier

    return train_classifier(tmp_path_factory.mktemp("trained_classifier"))


@pytest.fixture(scope="session")
def predictor(trained_classifier: Path):
    """`trained_classifier`, loaded as `bert-snli serve` loads it."""
    from bert_snli.serving.explanation import ExplainedPredictor

    return ExplainedPredictor(str(trained_classifier))


@pytest.fixture(scope="session")
def address(predictor) -> Iterator[str]:
    """The address at which the page of `predictor` is served."""
    from bert_snli.serving.app import start

    port = unused_port()
    app = start(predictor, "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}"
    app.close(verbose=False)


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps its state for the life of a process; each test begins without."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training draw no plots, which take most of the time of a short run.

    `tests/integration/test_run_folder.py` tests them.
    """
    for name in (
        "finetune.plot_curve",
        "pretrain.plot_pretraining",
        "training.run_folder.plot_training_progress",
        "training.run_folder.plot_confusion_matrix",
    ):
        monkeypatch.setattr(f"bert_snli.{name}", lambda *arguments: None)


@pytest.fixture
def reference_bert() -> ReferenceBERT:
    torch.manual_seed(0)
    return ReferenceBERT().eval()


@pytest.fixture
def d2l_checkpoint(tmp_path: Path, reference_bert: ReferenceBERT) -> Path:
    return save_d2l_checkpoint(tmp_path / "book", reference_bert.state_dict(), small_vocabulary())


@pytest.fixture(scope="session")
def run_python():
    """Return a function that runs `python ARGUMENTS` in the repository and returns the finished process."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=Path(__file__).resolve().parents[1],
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return save_random_classifier(tmp_path / "model")


@pytest.fixture
def pretrained(d2l_checkpoint: Path, tmp_path: Path) -> Path:
    convert_checkpoint(d2l_checkpoint, tmp_path / "pretrained", num_attention_heads=2)
    return tmp_path / "pretrained"
