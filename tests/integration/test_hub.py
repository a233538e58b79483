"""Pushing to a Hub and loading from it: the real client with a Hub in memory (`tests/support/hub_server.py`)."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from bert_snli import inference
from bert_snli.cli import main
from bert_snli.console import use_token
from bert_snli.errors import BertSnliError
from bert_snli.files import CERTIFICATE, atomic_folder
from bert_snli.finetune import finetune_model
from bert_snli.hub import push_to_hub, stage_upload
from bert_snli.inference import load_classifier, load_config
from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification
from bert_snli.training.arguments import FinetuneArguments
from tests.support.command_line import error_line
from tests.support.hub_server import KNOWN_TOKEN, Commit, Hub, Repository, hub_client, running_hub
from tests.support.model_folders import (
    REPORT_FILES,
    convert_small_checkpoint,
    copy_model_folder,
    finetune_with_all_files,
    pretrain_small_model,
)
from tests.support.processes import REPOSITORY
from tests.support.without_package import run_without_package

PAIRS = [["A man is sleeping.", "w1 w2, w3"], ["w4 w5 w6", "w7"], ["w1 w2 w3", "w3 w2 w1"]]
PUSHED_FILES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "configuration_d2l_bert.py",
    "modeling_d2l_bert.py",
    "layers_d2l_bert.py",
    "nli_pipeline.py",
    "pair_truncation.py",
    "start_conversion_certificate.json",
    "provenance.md",
    "recipe.yaml",
    "train_results.json",
    "metrics.jsonl",
    "curve.png",
    "eval_results_test.json",
    "confusion_matrix_test.png",
    "onnx/model.onnx",
    *REPORT_FILES,
}
UNREACHABLE = "http://127.0.0.1:9"  # no server listens there


class Done(NamedTuple):
    """What a command returned and printed."""

    code: int
    out: str
    err: str


class HubSession:
    """Runs commands in this process against one Hub, with a cache in `home`."""

    def __init__(self, endpoint: str, home: Path) -> None:
        self.endpoint = endpoint
        self.home = home

    def run(self, *command: object, token: str | None = KNOWN_TOKEN) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with hub_client(self.endpoint, self.home, token), redirect_stdout(out), redirect_stderr(err):
            try:
                code = main([str(word) for word in command])
            except SystemExit as stop:
                code = int(stop.code or 0)
        return Done(code, out.getvalue(), err.getvalue())

    def push(self, folder: Path, repo_id: str, *options: object, token: str | None = KNOWN_TOKEN) -> Done:
        return self.run("push", folder, "--repo_id", repo_id, *options, token=token)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_small_checkpoint(tmp_path_factory.mktemp("base_model"))


@pytest.fixture(scope="module")
def model(converted: Path, corpus: Path) -> Path:
    """A fine-tuned model folder that also has files which must not be pushed."""
    return finetune_with_all_files(converted, corpus, converted.parent / "run")


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def session(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> HubSession:
    return HubSession(hub.endpoint, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def pushed(session: HubSession, model: Path) -> Done:
    """The push of `model` to user/name. Tests do not change that repository."""
    done = session.push(model, "user/name")
    assert done.code == 0, done
    return done


@pytest.fixture
def faults(hub: Hub) -> Iterator[dict[str, int | str]]:
    """The faults of `hub`, which end with the test."""
    yield hub.faults
    hub.faults.clear()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(done: Done, message: str) -> None:
    lines = [line for line in done.err.splitlines() if "error:" in line]
    assert done.code == 2, done.err
    assert len(lines) == 1 and message in lines[0], done.err
    assert "Traceback" not in done.err


# Pushed files


def test_push_uploads_the_known_files_in_one_commit(pushed: Done, hub: Hub, model: Path):
    commits = hub.repositories["user/name"].branches["main"]
    assert [commit.title for commit in commits] == ["initial commit", "Push with bert-snli"]
    assert commits[-1].files.keys() == PUSHED_FILES
    for name in PUSHED_FILES - {"README.md"}:
        source = model.parent / "converted" / CERTIFICATE if name.startswith("start_") else model / name
        assert commits[-1].files[name] == source.read_bytes(), name
    assert commits[-1].sha in pushed.out
    assert not (model / "README.md").exists()  # the card is generated for the push only
    for call in ("POST /api/repos/create", "PUT /lfs/", "POST /api/models/user/name/commit/main"):
        assert any(line.startswith(call) for line in hub.calls), call


def test_push_to_hub_in_python_makes_the_same_commit(
    pushed: Done, session: HubSession, hub: Hub, model: Path, tmp_path: Path
):
    with hub_client(session.endpoint, tmp_path, KNOWN_TOKEN):
        address = push_to_hub(str(model), "user/python", private=True, commit_message="From Python", license="mit")
    repository = hub.repositories["user/python"]
    commit, other = repository.branches["main"][-1], hub.repositories["user/name"].branches["main"][-1]
    assert commit.sha in address and commit.title == "From Python" and repository.private
    assert commit.files.keys() == other.files.keys()
    assert all(commit.files[name] == other.files[name] for name in commit.files.keys() - {"README.md"})
    assert yaml.safe_load(commit.files["README.md"].decode().split("---")[1])["license"] == "mit"


def test_push_of_an_unchanged_folder_makes_no_commit(pushed: Done, session: HubSession, hub: Hub, model: Path):
    assert session.push(model, "user/name").code == 0
    assert len(hub.repositories["user/name"].branches["main"]) == 2


def test_push_to_a_new_branch_creates_it_and_names_it_in_the_card(session: HubSession, hub: Hub, model: Path):
    done = session.push(model, "user/branches", "--revision", "an/experiment", "--license", "mit")
    assert done.code == 0, done
    branches = hub.repositories["user/branches"].branches
    assert branches["an/experiment"][-1].files.keys() == PUSHED_FILES and branches["main"][-1].files == {}
    card = branches["an/experiment"][-1].files["README.md"].decode()
    assert '"user/branches", revision="an/experiment"' in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"


def test_private_and_commit_message_are_sent(pushed: Done, session: HubSession, hub: Hub, model: Path):
    assert session.push(model, "user/private", "--private", "--commit_message", "A private model").code == 0
    assert hub.repositories["user/private"].private and not hub.repositories["user/name"].private
    assert hub.repositories["user/private"].branches["main"][-1].title == "A private model"


def test_private_is_refused_for_a_public_repository(pushed: Done, session: HubSession, model: Path):
    assert_refused(session.push(model, "user/name", "--private"), "--private: user/name already exists and is public")


def test_push_removes_files_of_an_earlier_push_and_keeps_other_files(session: HubSession, hub: Hub, model: Path):
    earlier = {"eval_results_validation.json": b"{}", CERTIFICATE: b"{}", "notes.md": b"mine", "a/config.json": b""}
    earlier |= {"report/slices.png": b"", "report/figures/mine.png": b"mine"}
    hub.repositories["user/earlier"] = Repository(False, {"main": [Commit("earlier push", earlier)]})
    assert session.push(model, "user/earlier").code == 0
    commits = hub.repositories["user/earlier"].branches["main"]
    assert len(commits) == 2
    assert commits[-1].files.keys() == PUSHED_FILES | {"notes.md", "a/config.json", "report/figures/mine.png"}


def test_dry_run_writes_the_files_of_a_push_without_a_hub(pushed: Done, hub: Hub, model: Path, tmp_path: Path):
    offline = HubSession(UNREACHABLE, tmp_path / "home")
    options = ("--dry_run", "--output_dir", tmp_path / "staged")
    assert offline.push(model, "user/name", *options, token=None).code == 0
    assert files_of(tmp_path / "staged") == hub.repositories["user/name"].branches["main"][-1].files


LOAD_AND_RUN_SNIPPETS = """
import contextlib, io, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

predictions = []
for repo_id, revision in arguments["models"]:
    options = {"revision": revision, "trust_remote_code": True}
    tokenizer = AutoTokenizer.from_pretrained(repo_id, **options)
    model = AutoModelForSequenceClassification.from_pretrained(repo_id, **options)
    inputs = tokenizer(*map(list, zip(*arguments["pairs"])), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    logits = [[value.hex() for value in row] for row in logits.tolist()]
    predictions.append({"ids": inputs["input_ids"].tolist(), "logits": logits})
printed = []
for snippet in arguments["snippets"]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(snippet, {})
    printed.append(out.getvalue())
print(json.dumps({"predictions": predictions, "printed": printed}))
"""


def snippets_of(card: bytes) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", card.decode(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_pushed_models_load_bit_exactly_without_the_package_and_snippets_of_their_cards_run(
    hub: Hub, session: HubSession, model: Path, converted: Path, corpus: Path, tmp_path: Path
):
    pretrained = pretrain_small_model(corpus, tmp_path / "pretrained")
    repositories = []
    for name, folder, *options in (
        ("user/load", model),
        ("user/load", model, "--revision", "an/experiment", "--license", "mit"),
        ("user/converted", converted),
        ("user/pretrained", pretrained),
    ):
        done = session.push(folder, name, *options)
        assert done.code == 0, done
        repositories.append(hub.repositories[name].branches[options[1] if options else "main"][-1].files)
    snippets = [snippet for files in repositories for snippet in snippets_of(files["README.md"])]
    assert len(snippets) == 8
    models = [("user/load", "main"), ("user/load", "an/experiment")]
    found = run_without_package(
        LOAD_AND_RUN_SNIPPETS, tmp_path, hub.endpoint, pairs=PAIRS, models=models, snippets=snippets
    )
    tokenizer, classifier = AutoTokenizer.from_pretrained(model), load_classifier(str(model))
    inputs = tokenizer(*map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = classifier(**inputs).logits.tolist()
    expected = {"ids": inputs["input_ids"].tolist(), "logits": [[value.hex() for value in row] for row in logits]}
    assert found["predictions"] == [expected, expected]
    for printed in found["printed"][:6]:
        assert all(label in printed for label in ("entailment", "contradiction", "neutral"))
    assert "token_str" in found["printed"][7]


# Errors of loading

FILE_OF = {"config": "config.json", "tokenizer": "tokenizer.json", "weights": "model.safetensors"}


def load_error(name: str, part: str, endpoint: str | None, home: Path) -> str:
    """Return the error message of `load_config`, `load_tokenizer` or `load_weights`, or "" if it loads."""
    with hub_client(endpoint, home):
        try:
            if part == "weights":
                inference.load_weights(name, D2LBertConfig(), D2LBertForSequenceClassification)
            else:
                getattr(inference, f"load_{part}")(name)
        except BertSnliError as error:
            return str(error)
    return ""


@pytest.fixture(scope="module")
def hub_with_damaged_models(model: Path) -> Iterator[Hub]:
    files = {name: content for name, content in files_of(model).items() if "/" not in name}
    stored = {
        "user/complete": files,
        "user/incomplete": {name: data for name, data in files.items() if name not in FILE_OF.values()},
        "user/damaged": {name: b"{" if name in FILE_OF.values() else data for name, data in files.items()},
        "user/failing": files,
    }
    with running_hub() as hub:
        for name, content in stored.items():
            hub.repositories[name] = Repository(False, {"main": [Commit("files", content)]})
        hub.faults = {f"{method} /user/failing": 503 for method in ("HEAD", "GET")}
        yield hub


@pytest.mark.parametrize("part", FILE_OF)
def test_load_error_says_whether_hub_model_or_file_is_missing_or_damaged(
    part: str, hub_with_damaged_models: Hub, tmp_path: Path
):
    def message(name: str) -> str:
        return load_error(name, part, hub_with_damaged_models.endpoint, tmp_path)

    if part != "weights":  # those of the model do not fit the default configuration
        assert message("user/complete") == ""
    assert message("user/incomplete").startswith(f"user/incomplete: has no {FILE_OF[part]}; give ")
    assert "no model on the Hub that your token can read" in message("user/unknown")
    assert "the Hub answered 503 (no reason given); try again later" in message("user/failing")
    damaged = "weights" if part == "weights" else FILE_OF[part]
    assert message("user/damaged").startswith(f"user/damaged: its {damaged} cannot be loaded (")


@pytest.mark.parametrize("part", FILE_OF)
def test_load_error_says_that_the_hub_cannot_be_reached(part: str, tmp_path: Path):
    message = load_error("user/name", part, UNREACHABLE, tmp_path)
    reason = f"the Hub at {UNREACHABLE} cannot be reached ([Errno 111] Connection refused); check the network, or give"
    assert reason in message
    assert "again" not in message  # neither "convert the checkpoint again" nor "get the model again"


def test_load_error_says_that_the_hub_is_switched_off(tmp_path: Path):
    message = load_error("user/name", "tokenizer", None, tmp_path)
    assert "the Hub cannot be reached (HF_HUB_OFFLINE is set); unset it, or give" in message


# Errors of pushing


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        ("GET /api/models/user/refused/tree", 401, "user/refused: the Hub answered 401 (no); check the name and your"),
        ("POST /api/models/user/refused/preupload", 403, "user/refused: the Hub answered 403 (no); check the name and"),
        ("GET /api/models/user/refused/tree", 404, "user/refused: the Hub answered 404 (no); check the name and your"),
        ("POST /api/models/user/refused/preupload", 422, "user/refused: the Hub answered 422 (no)"),
        ("POST /api/models/user/refused/commit", 500, "user/refused: the Hub answered 500 (no); try again later"),
    ],
    ids=["401", "403", "404", "422", "500"],
)
def test_push_error_is_one_line_and_the_repository_is_unchanged(
    call: str, status: int, message: str, faults: dict, session: HubSession, hub: Hub, model: Path
):
    faults[call] = status
    assert_refused(session.push(model, "user/refused"), message)
    assert [commit.files for commit in hub.repositories["user/refused"].branches["main"]] == [{}]


def test_push_with_an_unknown_token_is_one_line(session: HubSession, model: Path):
    assert_refused(session.push(model, "user/name", token="hf_mine"), "check the name and your token")


def test_push_with_an_unknown_licence_repeats_the_message_of_the_hub(session: HubSession, model: Path):
    done = session.push(model, "user/licence", "--license", "nonsense")
    assert_refused(done, 'Invalid metadata in README.md. - "license" must be one of ...')


def test_dropped_upload_leaves_the_repository_unchanged(
    pushed: Done, faults: dict, session: HubSession, hub: Hub, model: Path, tmp_path: Path
):
    before = [commit.sha for commit in hub.repositories["user/name"].branches["main"]]
    with atomic_folder(tmp_path / "changed") as folder:
        load_classifier(str(model)).half().save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    faults["PUT /lfs/"] = "drop"
    hub.calls.clear()
    assert_refused(session.push(tmp_path / "changed", "user/name"), "cannot be reached")
    assert any(call.startswith("PUT /lfs/") for call in hub.calls)
    assert not any("/commit/" in call for call in hub.calls)
    assert [commit.sha for commit in hub.repositories["user/name"].branches["main"]] == before


def remove_nsp_head(folder: Path) -> None:
    (folder / CERTIFICATE).unlink()
    weights = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "nsp" not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("folder", "change", "message"),
    [
        ("converted", remove_nsp_head, "its weights have no nsp_head."),
        (
            "converted",
            lambda folder: (folder / "modeling_d2l_bert.py").write_text("import os"),
            "modeling_d2l_bert.py: changed since conversion",
        ),
        ("model", lambda folder: (folder / "modeling_d2l_bert.py").unlink(), "copy: has no modeling_d2l_bert.py"),
    ],
    ids=["nsp_head", "changed_code", "missing_code"],
)
def test_incomplete_or_changed_folder_is_refused(
    folder: str, change, message: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture
):
    copy = copy_model_folder(request.getfixturevalue(folder), tmp_path / "copy", change)
    command = ["push", copy, "--repo_id", "user/name", "--dry_run", "--output_dir", tmp_path / "staged"]
    assert message in error_line(command, capsys)
    assert not (tmp_path / "staged").exists()


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        (["user/name"], None, "user/name: you are not logged in to the Hub; run hf auth login"),
        (["user/name"], KNOWN_TOKEN, f"{UNREACHABLE} cannot be reached"),
        (["name"], KNOWN_TOKEN, "--repo_id name: not the name of a repository; give one such as user/name"),
        (["user/na me"], KNOWN_TOKEN, "--repo_id user/na me: not the name of a repository"),
        (["user/name", "--dry_run"], KNOWN_TOKEN, "--dry_run and --output_dir: one needs the other"),
        (["user/name", "--output_dir", "staged"], KNOWN_TOKEN, "--dry_run and --output_dir: one needs the other"),
        (["user/name", "--dry_run", "--output_dir", "full"], KNOWN_TOKEN, "error: full: already holds files"),
    ],
)
def test_mistake_in_push_is_one_line(
    options: list[str],
    token: str | None,
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("mine")
    assert_refused(HubSession(UNREACHABLE, tmp_path / "home").push(model, *options, token=token), message)
    assert files_of(Path()) == {"full/thesis.tex": b"mine"}


def test_push_of_a_folder_that_does_not_exist_is_one_line(tmp_path: Path):
    done = HubSession(UNREACHABLE, tmp_path / "home").push(
        tmp_path / "nowhere", "user/name", "--dry_run", "--output_dir", tmp_path / "staged"
    )
    assert_refused(done, "nowhere: no such folder")


# Pushes of training runs


def finetune_command(converted: Path, corpus: Path, output_dir: Path) -> list[object]:
    options = ["--max_length", 33, "--max_train_samples", 32, "--max_eval_samples", 20, "--num_train_epochs", 1]
    paths = ["--model_name_or_path", converted, "--dataset_name_or_path", corpus, "--output_dir", output_dir]
    return ["finetune", *options, *paths, "--mixed_precision", "no"]


def test_finetune_pushes_the_model_folder(session: HubSession, hub: Hub, converted: Path, corpus: Path, tmp_path: Path):
    command = finetune_command(converted, corpus, tmp_path / "run")
    done = session.run(*command, "--push_to_hub", "--hub_model_id", "user/trained", "--hub_private_repo")
    assert done.code == 0, done.err
    repository = hub.repositories["user/trained"]
    assert repository.private
    assert len(repository.branches["main"]) == 2
    files = repository.branches["main"][-1].files
    measured = {"eval_results_test.json", "confusion_matrix_test.png", "onnx/model.onnx", *REPORT_FILES}
    assert files.keys() == PUSHED_FILES - measured
    assert repository.branches["main"][-1].sha in done.err
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    recipe = yaml.safe_load(files["recipe.yaml"])
    assert not {"push_to_hub", "hub_model_id", "hub_private_repo"} & recipe.keys()  # a second run must not push


@pytest.mark.slow
def test_only_one_of_two_processes_pushes(hub: Hub, converted: Path, corpus: Path, tmp_path: Path):
    command = finetune_command(converted, corpus, tmp_path / "run")
    command += ["--num_processes", 2, "--push_to_hub", "--hub_model_id", "user/two"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": KNOWN_TOKEN}
    done = subprocess.run(
        [sys.executable, "-m", "bert_snli.cli", *map(str, command)],
        env={**environment, "HF_HUB_DISABLE_XET": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len(hub.repositories["user/two"].branches["main"]) == 2
    assert sum(line.startswith("POST /api/models/user/two/preupload") for line in hub.calls) == 1


def test_finetune_that_cannot_push_fails_before_training(
    session: HubSession, converted: Path, corpus: Path, tmp_path: Path
):
    command = finetune_command(converted, corpus, tmp_path / "run")
    done = session.run(*command, "--push_to_hub", "--hub_model_id", "user/other", token="hf_mine")
    assert_refused(done, "check the name and your token")
    assert not (tmp_path / "run").exists()


def test_failed_push_after_training_keeps_the_model(
    faults: dict, session: HubSession, converted: Path, corpus: Path, tmp_path: Path
):
    faults["POST /api/models/user/forbidden/preupload"] = 403
    folder = tmp_path / "run"
    command = finetune_command(converted, corpus, folder)
    done = session.run(*command, "--push_to_hub", "--hub_model_id", "user/forbidden")
    assert_refused(done, f"; the model is saved: push {folder} again")
    assert load_classifier(str(folder)) and (folder / "train_results.json").is_file()


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        (["--push_to_hub"], KNOWN_TOKEN, "--push_to_hub: needs --hub_model_id"),
        (["--hub_model_id", "user/name"], KNOWN_TOKEN, "--hub_model_id: has no effect without --push_to_hub"),
        (["--hub_private_repo"], KNOWN_TOKEN, "--hub_private_repo: has no effect without --push_to_hub"),
        (["--push_to_hub", "--hub_model_id", "name"], KNOWN_TOKEN, "--hub_model_id name: not the name of a repository"),
        (["--push_to_hub", "--hub_model_id", "user/name"], None, "user/name: you are not logged in"),
    ],
)
def test_mistake_in_hub_options_of_finetune_is_one_line(
    options: list[str], token: str | None, message: str, converted: Path, corpus: Path, tmp_path: Path
):
    command = finetune_command(converted, corpus, tmp_path / "run")
    assert_refused(HubSession(UNREACHABLE, tmp_path / "home").run(*command, *options, token=token), message)
    assert not (tmp_path / "run").exists()


def test_finetune_in_a_used_folder_removes_measurements_of_the_earlier_weights(
    converted: Path, corpus: Path, tmp_path: Path
):
    """The base model and the run are the same folder. Its certificate and its results are those of other weights."""

    def add_measurements(folder: Path) -> None:
        (folder / "report").mkdir()
        (folder / "onnx").mkdir()
        for name in ("eval_results_test.json", "report/report.md", "onnx/model.onnx", "notes.txt"):
            (folder / name).write_text("of the earlier weights")

    folder = copy_model_folder(converted, tmp_path / "run", add_measurements)
    options = {"max_length": 33, "max_steps": 1, "max_train_samples": 32, "max_eval_samples": 20}
    recipe = FinetuneArguments(str(folder), str(corpus), str(folder), overwrite_output_dir=True, **options)
    finetune_model(recipe)
    assert (folder / "notes.txt").is_file()
    stage_upload(folder, "user/name", tmp_path / "staged")
    names = files_of(tmp_path / "staged").keys()
    assert not {"eval_results_test.json", "report/report.md", "onnx/model.onnx", CERTIFICATE} & names
    assert (folder / "start_conversion_certificate.json").read_bytes() == (converted / CERTIFICATE).read_bytes()
    finetune_model(recipe)
    stage_upload(folder, "user/name", tmp_path / "again")
    assert "start_conversion_certificate.json" not in files_of(tmp_path / "again")


def test_revision_and_token_select_the_model(
    session: HubSession, hub: Hub, model: Path, converted: Path, corpus: Path, tmp_path: Path
):
    """`main` holds the pretrained model, so that only the revision can predict."""
    assert session.push(converted, "user/versions", "--private").code == 0
    assert session.push(model, "user/versions", "--revision", "v1").code == 0
    pair = ("--premise", "A man sleeps.", "--hypothesis", "A man eats.")
    options = ("--revision", "v1", "--token", KNOWN_TOKEN)
    expected = session.run("predict", model, *pair).out
    done = session.run("predict", "user/versions", *pair, *options, token=None)
    assert (done.code, done.out) == (0, expected), done.err
    assert (
        "no model on the Hub that your token can read" in session.run("predict", "user/versions", *pair, token=None).err
    )
    assert "without a trained classifier" in session.run("predict", "user/versions", *pair).err
    assert "no revision v2" in session.run("predict", "user/versions", *pair, "--revision", "v2").err
    data = ("--dataset_name_or_path", corpus, "--max_length", 33, "--max_eval_samples", 8, "--max_train_samples", 8)
    run = tmp_path / "run"
    done = session.run("finetune", "user/versions", *data, *options, "--output_dir", run, "--max_steps", 1, token=None)
    assert done.code == 0, done.err
    assert load_config(str(run)).classifier_head == load_config(str(model)).classifier_head


@pytest.mark.parametrize("words", [["--token", "hf_secret"], ["--token=hf_secret"]])
def test_token_is_removed_from_the_command_line_and_from_the_environment(words: list[str], monkeypatch):
    """Experiment trackers store the command line."""
    monkeypatch.setenv("HF_TOKEN", "hf_before")
    argv = ["push", *words, "--private"]
    monkeypatch.setattr(sys, "argv", ["bert-snli", *argv])
    with use_token(argv) as rest:
        assert os.environ["HF_TOKEN"] == "hf_secret"
        assert rest == sys.argv[1:] == ["push", "--private"]
    assert os.environ["HF_TOKEN"] == "hf_before"
