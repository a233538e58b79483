"""Pushing: the real client against a hub in memory (tests/hub_server.py), each run in a Python of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from bert_snli.errors import BertSnliError
from bert_snli.evaluation.report import evaluate_model, save_figures
from bert_snli.finetune import finetune
from bert_snli.folders import finished_folder
from bert_snli.hub import stage
from bert_snli.inference import load_classifier, load_tokenizer
from bert_snli.model_card import describe_data
from bert_snli.pretrain import pretrain
from bert_snli.training.pretrain_recipe import PretrainRecipe
from bert_snli.training.recipe import FinetuneRecipe
from conversion.certificate import CERTIFICATE
from conversion.convert import convert
from tests.support.checkpoints import save_d2l_checkpoint, small_vocabulary
from tests.support.classifiers import save_random_classifier
from tests.support.d2l_reference import ReferenceBERT
from tests.support.hub_server import KNOWN_TOKEN, Commit, Hub, Repository, running_hub
from tests.support.without_package import run_without_package

PAIRS = [["A man is sleeping.", "w1 w2, w3"], ["w4 w5 w6", "w7"], ["w1 w2 w3", "w3 w2 w1"]]
JUNK = (
    "checkpoint-2/model.safetensors",
    "runs/events.out.tfevents.1",
    ".partial-abc/config.json",
    ".env",
    "notes.txt",
    "curve.svg",
    "optimizer.pt",
    "report/draft.docx",
    "report/old/report.md",
)
REPORT = ("report/report.md", "report/report.html", "report/report.json", "report/lengths.png")
PUSHED = {
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "configuration_d2l_bert.py",
    "modeling_d2l_bert.py",
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
    *REPORT,
}
CLIENT = """
import contextlib, io, json, os, sys
from bert_snli.cli import main

done = []
for token, *command in json.loads(sys.stdin.read()):
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({"HF_TOKEN": token} if token else {})
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command)
    done.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""


def run_client(hub: str, home: Path, commands: list[list[Any]]) -> list[list[Any]]:
    """Run commands, each with a token (or none) before it, against a hub: exit code, stdout and stderr of each."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    caches = {"HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "datasets")}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT],
        input=json.dumps([[word if word is None else str(word) for word in command] for command in commands]),
        env={**kept, **caches, "HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def push_of(model: Path, repo_id: str, *options: object, token: str | None = KNOWN_TOKEN) -> list:
    return [token, "push", model, "--repo_id", repo_id, *options]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("start")
    book = save_d2l_checkpoint(folder / "book", ReferenceBERT().state_dict(), small_vocabulary())
    convert(book, folder / "converted", num_attention_heads=2)
    return folder / "converted"


@pytest.fixture(scope="module")
def model(converted: Path, corpus: Path) -> Path:
    """A fine-tuned folder with everything that may lie in one, and with what must not travel."""
    folder = converted.parent / "run"
    recipe = {"max_length": 33, "num_train_epochs": 2, "learning_rate": 1e-2, "save_steps": 2, "max_eval_samples": 20}
    finetune(FinetuneRecipe(str(converted), str(corpus), str(folder), **recipe))
    results = evaluate_model(str(folder), str(corpus), split="test")
    save_figures(results, folder)
    for name in JUNK + REPORT:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(f"content of {name}")
    (folder / "report" / "report.json").write_text(json.dumps(results))
    return folder


@pytest.fixture(scope="module")
def pretrained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `bert-snli pretrain` wrote."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "max_position_embeddings": 64}
    pretrain(
        PretrainRecipe(dataset_name_or_path=str(corpus), output_dir=str(folder), max_length=40, max_steps=3, **sizes)
    )
    return folder


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def pushed(
    hub: Hub,
    model: Path,
    converted: Path,
    pretrained: Path,
    corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict:
    """What every push of these tests said, by its repository: one Python makes them all, as it is slow to start."""
    home = tmp_path_factory.mktemp("home")
    hub.faults = {
        "GET /api/models/user/unauthorized/tree": 401,
        "POST /api/models/user/forbidden/preupload": 403,
        "GET /api/models/user/gone/tree": 404,
        "POST /api/models/user/broken/commit": 500,
        "POST /api/models/user/taken/preupload": 422,
    }
    training = ["finetune", "--model_name_or_path", converted, "--dataset_name_or_path", corpus, "--max_length", 33]
    training += ["--num_train_epochs", 1, "--push_to_hub", "--output_dir"]
    commands = {
        "user/name": push_of(model, "user/name"),
        "twice": push_of(model, "user/name"),
        "branch": push_of(model, "user/name", "--revision", "an/experiment", "--license", "mit"),
        "user/secret": push_of(model, "user/secret", "--private", "--commit_message", "For my eyes only"),
        "public already": push_of(model, "user/name", "--private"),
        "user/converted": push_of(converted, "user/converted"),
        "user/pretrained": push_of(pretrained, "user/pretrained"),
        "user/unauthorized": push_of(model, "user/unauthorized"),
        "user/forbidden": push_of(model, "user/forbidden"),
        "user/gone": push_of(model, "user/gone"),
        "user/broken": push_of(model, "user/broken"),
        "user/taken": push_of(model, "user/taken"),
        "no licence": push_of(model, "user/taken", "--license", "nonsense"),
        "unknown token": push_of(model, "user/name", token="hf_mine"),
        "user/trained": [KNOWN_TOKEN, *training, home / "run", "--hub_model_id", "user/trained", "--hub_private_repo"],
        "user/two": [KNOWN_TOKEN, *training, home / "two", "--hub_model_id", "user/two", "--num_processes", 2],
        "training, unknown token": ["hf_mine", *training, home / "none", "--hub_model_id", "user/other"],
        "training, forbidden": [KNOWN_TOKEN, *training, home / "kept", "--hub_model_id", "user/forbidden"],
    }
    done = run_client(hub.endpoint, home, list(commands.values()))
    return {"home": home, "calls": list(hub.calls), **dict(zip(commands, done, strict=True))}


def assert_refused(done: list, message: str) -> None:
    code, _, error = done
    lines = [line for line in error.splitlines() if "error:" in line]
    assert code == 2, error
    assert len(lines) == 1 and message in lines[0], error
    assert "Traceback" not in error


# What is pushed


def test_what_is_known_is_pushed_in_one_commit_and_nothing_else(pushed: dict, hub: Hub, model: Path):
    assert pushed["user/name"][0] == 0, pushed["user/name"]
    branch = hub.repositories["user/name"].branches["main"]
    assert [commit.title for commit in branch] == ["initial commit", "Push with bert-snli"]
    assert branch[-1].files.keys() == PUSHED
    for name in PUSHED - {"README.md"}:
        source = model.parent / "converted" / CERTIFICATE if name.startswith("start_") else model / name
        assert branch[-1].files[name] == source.read_bytes(), name
    assert branch[-1].sha in pushed["user/name"][1]
    assert not (model / "README.md").exists()  # the card is made for the push, not in the folder
    print("\n".join(hub.calls))  # seen with pytest -s
    for call in ("POST /api/repos/create", "PUT /lfs/", "POST /api/models/user/name/commit/main"):
        assert any(line.startswith(call) for line in hub.calls), call


def test_pushing_the_same_again_makes_no_commit(pushed: dict, hub: Hub):
    assert pushed["twice"][0] == 0
    assert len(hub.repositories["user/name"].branches["main"]) == 2


def test_a_branch_is_made_and_named_in_the_card(pushed: dict, hub: Hub):
    assert pushed["branch"][0] == 0, pushed["branch"]
    branch = hub.repositories["user/name"].branches["an/experiment"]
    assert branch[-1].files.keys() == PUSHED
    card = branch[-1].files["README.md"].decode()
    assert '"user/name", revision="an/experiment"' in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"


def test_private_and_the_commit_message_arrive(pushed: dict, hub: Hub):
    assert not hub.repositories["user/name"].private
    assert hub.repositories["user/secret"].private
    assert hub.repositories["user/secret"].branches["main"][-1].title == "For my eyes only"
    assert_refused(pushed["public already"], "--private: user/name is there already and public")


@pytest.mark.slow
def test_files_of_an_earlier_push_go_and_other_peoples_stay(hub: Hub, pushed: dict, model: Path, tmp_path: Path):
    files = hub.repositories["user/name"].branches["main"][-1].files
    files.update({"eval_results_validation.json": b"{}", CERTIFICATE: b"{}", "notes.md": b"mine", "a/config.json": b""})
    hub.calls.clear()
    (done,) = run_client(hub.endpoint, tmp_path, [push_of(model, "user/name")])
    assert done[0] == 0, done
    branch = hub.repositories["user/name"].branches["main"]
    assert branch[-1].files.keys() == PUSHED | {"notes.md", "a/config.json"}
    assert sum("/commit/" in call for call in hub.calls) == 1


OPEN = """
import contextlib, io, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

answers = []
for revision in arguments["revisions"]:
    options = {"revision": revision, "trust_remote_code": True}
    tokenizer = AutoTokenizer.from_pretrained("user/name", **options)
    model = AutoModelForSequenceClassification.from_pretrained("user/name", **options)
    inputs = tokenizer(*map(list, zip(*arguments["pairs"])), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    logits = [[value.hex() for value in row] for row in logits.tolist()]
    answers.append({"ids": inputs["input_ids"].tolist(), "logits": logits})
printed = []
for snippet in arguments["snippets"]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(snippet, {})
    printed.append(out.getvalue())
print(json.dumps({"answers": answers, "printed": printed}))
"""


def snippets_of(card: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", card, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_what_was_pushed_opens_elsewhere_with_the_same_bits_and_its_snippets_run(
    pushed: dict, hub: Hub, model: Path, tmp_path: Path
):
    branches = hub.repositories["user/name"].branches
    snippets = [
        snippet
        for card in (
            branches["main"][-1].files["README.md"],
            branches["an/experiment"][-1].files["README.md"],
            hub.repositories["user/converted"].branches["main"][-1].files["README.md"],
            hub.repositories["user/pretrained"].branches["main"][-1].files["README.md"],
        )
        for snippet in snippets_of(card.decode())
    ]
    assert len(snippets) == 6
    found = run_without_package(
        OPEN, tmp_path, hub.endpoint, pairs=PAIRS, revisions=["main", "an/experiment"], snippets=snippets
    )
    tokenizer, classifier = AutoTokenizer.from_pretrained(model), load_classifier(str(model))
    inputs = tokenizer(*map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = classifier(**inputs).logits.tolist()
    here = {
        "ids": inputs["input_ids"].tolist(),
        "logits": [[value.hex() for value in row] for row in logits],
    }
    assert found["answers"] == [here, here]
    for printed in found["printed"][:4]:
        assert all(label in printed for label in ("entailment", "contradiction", "neutral"))
    assert "token_str" in found["printed"][5]


# What goes wrong


LOAD = """
import json, sys, time
from bert_snli import inference
from bert_snli.errors import BertSnliError
from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification

time.sleep = lambda seconds: None  # huggingface_hub waits between its attempts
messages = []
for name, what in json.loads(sys.argv[1]):
    try:
        if what == "weights":
            inference.load_weights(name, D2LBertConfig(), D2LBertForSequenceClassification)
        else:
            getattr(inference, f"load_{what}")(name)
        messages.append("")
    except BertSnliError as error:
        messages.append(str(error))
print(json.dumps(messages))
"""
LOADED = ("config", "tokenizer", "weights")
FILES = ("config.json", "tokenizer.json", "model.safetensors")


def messages_of_loading(endpoint: str, home: Path, names: list[str]) -> dict[tuple[str, str], str]:
    """What `load_config`, `load_tokenizer` and `load_weights` say of models on a Hub, without anything in the cache."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    asked = [(name, what) for name in names for what in LOADED]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(asked)],
        env={**kept, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(asked, json.loads(done.stdout.splitlines()[-1]), strict=True))


def test_loading_says_which_of_hub_model_and_file_is_missing_or_damaged(model_folder: Path, tmp_path: Path):
    files = {path.name: path.read_bytes() for path in model_folder.iterdir()}
    stored = {
        "user/whole": files,
        "user/empty": {name: content for name, content in files.items() if name not in FILES},
        "user/damaged": {name: b"{" if name in FILES else content for name, content in files.items()},
        "user/failing": files,
    }
    with running_hub() as hub:
        for name, content in stored.items():
            hub.repositories[name] = Repository(False, {"main": [Commit("files", content)]})
        hub.faults = {f"{method} /user/failing": 503 for method in ("HEAD", "GET")}
        said = messages_of_loading(hub.endpoint, tmp_path / "home", [*stored, "user/unknown"])
    assert said["user/whole", "config"] == said["user/whole", "tokenizer"] == ""
    for what, file in zip(LOADED, FILES, strict=True):
        assert said["user/empty", what].startswith(f"user/empty: has no {file}; give ")
        assert "no model on the Hub that your token can read" in said["user/unknown", what]
        assert "the Hub answered 503 (no reason given); try again later" in said["user/failing", what]
    assert said["user/damaged", "config"].startswith("user/damaged: its config.json is damaged (")
    assert said["user/damaged", "tokenizer"].startswith("user/damaged: its tokenizer.json is damaged (")
    assert said["user/damaged", "weights"].startswith("user/damaged: its weights cannot be loaded (")


@pytest.mark.slow
def test_loading_says_that_the_hub_cannot_be_reached(tmp_path: Path):
    said = messages_of_loading("http://127.0.0.1:9", tmp_path / "home", ["user/name"])
    reason = (
        "the Hub at http://127.0.0.1:9 cannot be reached ([Errno 111] Connection refused); check the network, or give"
    )
    for message in said.values():
        assert reason in message
        assert "again" not in message  # neither "convert the checkpoint again" nor "get the model again"


def test_loading_says_that_the_hub_cannot_be_reached_offline():
    with pytest.raises(BertSnliError, match="the Hub cannot be reached \\(HF_HUB_OFFLINE is set\\); unset it, or give"):
        load_tokenizer("user/name")


def test_what_the_hub_refuses_is_one_line(pushed: dict, hub: Hub):
    assert_refused(pushed["user/unauthorized"], "user/unauthorized: the hub does not know your token")
    assert_refused(pushed["unknown token"], "hf auth login")
    assert_refused(pushed["user/forbidden"], "user/forbidden: your token must not write there")
    assert_refused(pushed["user/taken"], "user/taken: the Hub answered 422 (no)")
    assert_refused(pushed["no licence"], 'Invalid metadata in README.md. - "license" must be one of ...')
    assert_refused(pushed["user/gone"], "user/gone: no such repository or branch")


def test_a_commit_that_fails_leaves_the_repository_as_it_was(pushed: dict, hub: Hub):
    assert_refused(pushed["user/broken"], "user/broken: the Hub answered 500 (no); try again later")
    assert [commit.files for commit in hub.repositories["user/broken"].branches["main"]] == [{}]


@pytest.mark.slow
def test_an_upload_that_is_cut_leaves_the_repository_as_it_was(pushed: dict, hub: Hub, model: Path, tmp_path: Path):
    before = [commit.sha for commit in hub.repositories["user/name"].branches["main"]]
    files = dict(hub.repositories["user/name"].branches["main"][-1].files)
    changed = tmp_path / "changed"
    with finished_folder(changed) as folder:
        load_classifier(str(model)).half().save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    hub.faults["PUT /lfs/"] = "cut"
    hub.calls.clear()
    (done,) = run_client(hub.endpoint, tmp_path / "home", [push_of(changed, "user/name")])
    del hub.faults["PUT /lfs/"]
    assert_refused(done, "cannot be reached")
    assert any(call.startswith("PUT /lfs/") for call in hub.calls)
    assert not any("/commit/" in call for call in hub.calls)
    after = hub.repositories["user/name"].branches["main"]
    assert [commit.sha for commit in after] == before and after[-1].files == files


@pytest.mark.slow
def test_without_a_hub(model: Path, converted: Path, pushed: dict, hub: Hub, tmp_path: Path):
    """Nobody listens: what needs no hub works, and what does says so; what is wrong is said before it is asked."""
    headless = tmp_path / "headless"
    headless.mkdir()
    for path in converted.iterdir():
        if path.name != CERTIFICATE:
            (headless / path.name).write_bytes(path.read_bytes())
    weights = {name: tensor for name, tensor in load_file(headless / "model.safetensors").items() if "nsp" not in name}
    save_file(weights, headless / "model.safetensors", metadata={"format": "pt"})
    tampered = tmp_path / "tampered"
    tampered.mkdir()
    for path in converted.iterdir():
        (tampered / path.name).write_bytes(path.read_bytes())
    (tampered / "modeling_d2l_bert.py").write_text("import os")
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    for path in model.iterdir():
        if path.is_file() and path.name != "modeling_d2l_bert.py":
            (lacking / path.name).write_bytes(path.read_bytes())
    staged, full = tmp_path / "staged", tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("mine")
    dry = ["--dry_run", "--output_dir", staged]
    training = ["finetune", "--model_name_or_path", converted, "--dataset_name_or_path", "sample", "--max_length", 33]
    training += ["--output_dir", tmp_path / "none"]
    expected: list[tuple[list, str | None]] = [
        (push_of(model, "user/name", *dry, token=None), None),
        (push_of(model, "user/name", token=None), "user/name: nobody is logged in to the hub; run hf auth login"),
        (push_of(model, "user/name"), "http://127.0.0.1:9 cannot be reached"),
        (push_of(model, "name"), "--repo_id name: no name of a repository; give one such as user/name"),
        (push_of(model, "user/na me"), "--repo_id user/na me: no name of a repository"),
        (push_of(model, "user/name", "--dry_run"), "--dry_run and --output_dir go together"),
        (push_of(model, "user/name", "--output_dir", staged), "--dry_run and --output_dir go together"),
        (push_of(model, "user/name", "--dry_run", "--output_dir", full), f"--output_dir {full}: already holds files"),
        (push_of(headless, "user/name", *dry), "a pretrained model that lacks nsp_head."),
        (push_of(tampered, "user/name", *dry), "modeling_d2l_bert.py: not as certified"),
        (push_of(lacking, "user/name", *dry), f"{lacking}: holds no modeling_d2l_bert.py"),
        (push_of(tmp_path / "nowhere", "user/name", *dry), "nowhere: no such folder"),
        ([None, *training, "--push_to_hub"], "--push_to_hub: needs --hub_model_id user/name"),
        ([None, *training, "--hub_model_id", "user/name"], "--hub_model_id: goes with --push_to_hub"),
        ([None, *training, "--hub_private_repo"], "--hub_private_repo: goes with --push_to_hub"),
        ([None, *training, "--push_to_hub", "--hub_model_id", "name"], "--hub_model_id name: no name of a repository"),
        ([None, *training, "--push_to_hub", "--hub_model_id", "user/name"], "user/name: nobody is logged in"),
    ]
    done = run_client("http://127.0.0.1:9", tmp_path / "home", [command for command, _ in expected])
    for (_, message), found in zip(expected, done, strict=True):
        if message is None:
            assert found[0] == 0, found
        else:
            assert_refused(found, message)
    assert not (tmp_path / "none").exists()
    assert contents(full).keys() == {"thesis.tex"}
    assert contents(staged) == hub.repositories["user/secret"].branches["main"][-1].files | {
        "README.md": contents(staged)["README.md"]
    }
    first = next(commit for commit in hub.repositories["user/name"].branches["main"] if commit.files)
    assert contents(staged)["README.md"] == first.files["README.md"]


# While training


def test_a_run_pushes_what_it_made(pushed: dict, hub: Hub):
    code, printed, error = pushed["user/trained"]
    assert code == 0, error
    repository = hub.repositories["user/trained"]
    assert repository.private
    assert len(repository.branches["main"]) == 2
    files = repository.branches["main"][-1].files
    not_measured = {"eval_results_test.json", "confusion_matrix_test.png", *REPORT}
    assert files.keys() == PUSHED - not_measured
    assert repository.branches["main"][-1].sha in printed
    assert files["model.safetensors"] == (pushed["home"] / "run" / "model.safetensors").read_bytes()
    recipe = yaml.safe_load(files["recipe.yaml"])
    assert not {"push_to_hub", "hub_model_id", "hub_private_repo"} & recipe.keys()  # to repeat is not to push


def test_of_two_processes_one_pushes(pushed: dict, hub: Hub):
    assert pushed["user/two"][0] == 0, pushed["user/two"]
    assert len(hub.repositories["user/two"].branches["main"]) == 2
    assert sum(line.startswith("POST /api/models/user/two/preupload") for line in pushed["calls"]) == 1


def test_a_run_forgets_what_was_measured_of_earlier_weights(converted: Path, corpus: Path, tmp_path: Path):
    """Fine-tuned where it was converted: its certificate and its results are no longer those of the weights."""

    def measured(folder: Path) -> None:
        (folder / "report").mkdir()
        for name in ("eval_results_test.json", "report/report.md", "notes.txt"):
            (folder / name).write_text("of the old weights")

    folder = copied(converted, tmp_path / "run", measured)
    recipe = {"max_length": 33, "max_steps": 1, "max_eval_samples": 20, "overwrite_output_dir": True}
    finetune(FinetuneRecipe(str(folder), str(corpus), str(folder), **recipe))
    assert (folder / "notes.txt").is_file()
    files = stage(folder, "user/name").files
    assert not {"eval_results_test.json", "report/report.md", CERTIFICATE} & files.keys()
    assert (folder / "start_conversion_certificate.json").read_bytes() == (converted / CERTIFICATE).read_bytes()
    finetune(FinetuneRecipe(str(folder), str(corpus), str(folder), **recipe))
    assert "start_conversion_certificate.json" not in stage(folder, "user/name").files


def test_figures_of_other_weights_stay_behind(model: Path, tmp_path: Path):
    def remeasured(folder: Path) -> None:
        path = folder / "eval_results_test.json"
        results = json.loads(path.read_text())
        (folder / "eval_results_other.json").write_text(json.dumps({**results, "weights_sha256": "0" * 64}))
        (folder / "confusion_matrix_other.png").write_bytes(b"of other weights")
        cut = {**results, "split": "cut", "max_length": 6, "accuracy": 0.123456}
        (folder / "eval_results_cut.json").write_text(json.dumps(cut))

    staged = stage(copied(model, tmp_path / "run", remeasured), "user/name")
    assert staged.left_out == ["confusion_matrix_other.png", "eval_results_other.json"]
    assert not set(staged.left_out) & staged.files.keys()
    assert "eval_results_test.json" in staged.files
    card = staged.files["README.md"].decode()
    assert "cut (cut at 6 tokens, longest)" in card
    assert "0.123456" not in card.split("---")[1]  # what is not comparable is not in the metadata


def test_a_model_that_does_not_remember_its_length_was_read_at_the_books(model: Path, tmp_path: Path):
    def forgotten(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "max_pair_length": None}))
        results = json.loads((folder / "eval_results_test.json").read_text())
        results["max_length"] = min(128, config["max_position_embeddings"])
        (folder / "eval_results_test.json").write_text(json.dumps(results))

    card = stage(copied(model, tmp_path / "run", forgotten), "user/name").files["README.md"].decode()
    assert "| test | raw |" in card and "cut at" not in card


def test_a_link_is_not_followed(model: Path, tmp_path: Path):
    def linked(folder: Path) -> None:
        (folder / "confusion_matrix_x.png").symlink_to("/etc/hostname")

    folder = copied(model, tmp_path / "run", linked)
    with pytest.raises(BertSnliError, match="confusion_matrix_x.png: a link"):
        stage(folder, "user/name")


def test_a_run_that_cannot_push_says_so_before_it_trains(pushed: dict):
    assert_refused(pushed["training, unknown token"], "the hub does not know your token")
    assert not (pushed["home"] / "none").exists()


def test_a_push_that_fails_after_training_leaves_the_model_and_says_how_to_go_on(pushed: dict):
    kept = pushed["home"] / "kept"
    assert_refused(
        pushed["training, forbidden"], f"the model is in {kept}: bert-snli push {kept} --repo_id user/forbidden"
    )
    assert (kept / "model.safetensors").is_file() and (kept / "train_results.json").is_file()


# The card


def test_the_card_tells_what_lies_in_the_folder(pushed: dict, hub: Hub, model: Path, converted: Path, corpus: Path):
    card = (
        next(commit for commit in hub.repositories["user/name"].branches["main"] if commit.files)
        .files["README.md"]
        .decode()
    )
    metadata = yaml.safe_load(card.split("---")[1])
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("transformers", "text-classification")
    assert (metadata["language"], metadata["license"]) == ("en", "apache-2.0")
    assert "datasets" not in metadata  # it was trained on a generated corpus, not on SNLI
    results = json.loads((model / "eval_results_test.json").read_text())
    assert "model-index" not in metadata  # nor measured on a set that others measure on
    epochs = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines() if "eval_loss" in line]
    assert len(epochs) == 2
    for number, epoch in enumerate(epochs, start=1):
        assert f"| {number} | {epoch['train_loss']:.4f} | {epoch['train_accuracy']:.4f} |" in card
    certificate = json.loads((converted / CERTIFICATE).read_text())
    for part in (
        "entailment 0, contradiction 1, neutral 2",
        "| learning rate | 0.01 |",
        f"| `{corpus.name}` | test | raw | {results['pairs']} | {results['accuracy']:.4f} |",
        "![Confusion matrix](confusion_matrix_test.png)",
        "![Loss and accuracy over epochs](curve.png)",
        "[report/report.md](report/report.md)",
        certificate["source"]["params_sha256"],
        "Bowman et al., 2015, CC BY-SA 4.0",
        "d2l.ai",
    ):
        assert part in card, part
    assert str(corpus.parent) not in card  # nor where on somebody's disk it lay


def test_figures_on_snli_are_in_the_metadata(model: Path, tmp_path: Path):
    def on_snli(folder: Path) -> None:
        results = json.loads((folder / "eval_results_test.json").read_text())
        (folder / "eval_results_test.json").write_text(json.dumps({**results, "dataset": "/home/a/snli_1.0.zip"}))

    folder = copied(model, tmp_path / "run", on_snli)
    results = json.loads((folder / "eval_results_test.json").read_text())
    metadata = yaml.safe_load(stage(folder, "user/name").files["README.md"].decode().split("---")[1])
    (index,) = metadata["model-index"]
    (entry,) = index["results"]
    assert (entry["dataset"]["type"], entry["dataset"]["split"]) == ("stanfordnlp/snli", "test")
    assert {metric["name"]: metric["value"] for metric in entry["metrics"]} == {
        "Accuracy": pytest.approx(results["accuracy"], abs=1e-6),
        "Macro F1": pytest.approx(results["macro_f1"], abs=1e-6),
    }


@pytest.mark.parametrize(
    ("name", "shown", "hub_id"),
    [
        ("stanfordnlp/snli", "SNLI", "stanfordnlp/snli"),
        ("/home/a/snli_1.0.zip", "SNLI", "stanfordnlp/snli"),
        ("sample", "a corpus generated by bert-snli", None),
        ("/home/a/snli_1.0_test.jsonl", "SNLI", "stanfordnlp/snli"),
        ("/home/a/snli_1.0_test_hard.jsonl", "`snli_1.0_test_hard.jsonl`", None),
        ("/home/a/mine", "`mine`", None),
    ],
)
def test_data_is_called_snli_only_where_it_is(name: str, shown: str, hub_id: str | None):
    assert (describe_data(name).name, describe_data(name).hub_id) == (shown, hub_id)


def copied(model: Path, target: Path, change: Callable[[Path], object]) -> Path:
    with finished_folder(target) as folder:
        for path in model.iterdir():
            if path.is_file():
                (folder / path.name).write_bytes(path.read_bytes())
        change(folder)
    return target


def card_of(folder: Path) -> str:
    content = stage(folder, "user/name").files["README.md"]
    return content.decode() if isinstance(content, bytes) else content.read_text()


def test_of_little_known_little_is_said(model: Path, tmp_path: Path):
    def forget(folder: Path) -> None:
        for pattern in ("*.jsonl", "*.yaml", "provenance.md", "*_results*", "*.png", "start_*"):
            for path in folder.glob(pattern):
                path.unlink()

    card = card_of(copied(model, tmp_path / "bare", forget))
    metadata = yaml.safe_load(card.split("---")[1])
    assert "model-index" not in metadata and "datasets" not in metadata
    assert "Not measured on a test split." in card and "Nothing is known of it" in card
    assert "![" not in card and "It started from" not in card


def test_card_does_not_name_bert_snli_as_trainer_of_a_model_that_transformers_trained(model: Path, tmp_path: Path):
    """`Trainer` writes a `train_results.json` too, without a recipe."""
    load_classifier(str(model)).save_pretrained(tmp_path / "run")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "run")
    results = {"epoch": 2.0, "train_loss": 0.5, "train_runtime": 12.5, "train_samples_per_second": 100.0}
    (tmp_path / "run" / "train_results.json").write_text(json.dumps(results))
    said = "It was fine-tuned with `bert-snli`"
    card = card_of(tmp_path / "run")
    assert said in card_of(model) and said not in card
    assert "and recipe" not in card and "fine-tuned" not in card
    assert "| training time (s) | 12.5 |" in card


def test_card_of_a_pretrained_model_says_what_it_is_and_how_to_use_it(
    pushed: dict, hub: Hub, pretrained: Path, corpus: Path
):
    assert pushed["user/pretrained"][0] == 0, pushed["user/pretrained"]
    files = hub.repositories["user/pretrained"].branches["main"][-1].files
    assert {"model.safetensors", "tokenizer.json", "recipe.yaml", "train_results.json", "provenance.md"} <= files.keys()
    card = files["README.md"].decode()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["pipeline_tag"] == "fill-mask" and "natural-language-inference" not in metadata["tags"]
    results = json.loads((pretrained / "train_results.json").read_text())
    for part in (
        f"{results['vocab_size']} tokens",
        f"- Data: `{corpus.name}`.",
        f"| validation | {results['eval_mlm_loss']:.4f} | {results['eval_mlm_accuracy']:.4f} |",
        f"| 1 | {json.loads((pretrained / 'metrics.jsonl').read_text().splitlines()[0])['train_mlm_loss']:.4f} |",
        "hf download user/pretrained --local-dir pretrained\n",
        "bert-snli finetune --model_name_or_path pretrained --output_dir",
        "It was pretrained with `bert-snli`",
    ):
        assert part in card, part
    assert "entailment" not in card


def test_card_of_a_pretrained_model_says_no_more_than_is_known(converted: Path, tmp_path: Path):
    card = card_of(copied(converted, tmp_path / "bare", lambda folder: (folder / CERTIFICATE).unlink()))
    assert "Not measured." in card and "Nothing is known of it" in card and "with `bert-snli`." not in card


def test_a_head_that_is_not_the_books_is_said_in_the_card(model: Path, tmp_path: Path):
    save_random_classifier(tmp_path / "books", classifier_head="pooler")
    said = "Its classifier head is not the book's"
    assert said in card_of(model) and said not in card_of(tmp_path / "books")


def test_a_folder_from_before_the_pipeline_gets_a_card_without_it(model: Path, tmp_path: Path):
    def forget(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        del config["custom_pipelines"]
        (folder / "config.json").write_text(json.dumps(config))

    card = card_of(copied(model, tmp_path / "old", forget))
    assert 'natural-language-inference"' not in card and len(snippets_of(card)) == 1


def test_a_readme_of_ones_own_goes_as_it_is_and_a_card_is_made_anew(model: Path, converted: Path, tmp_path: Path):
    mine = copied(model, tmp_path / "mine", lambda folder: (folder / "README.md").write_text("# My model\n"))
    staged = stage(mine, "user/name")
    assert staged.own_card and staged.files["README.md"] == mine / "README.md"

    def older(folder: Path) -> None:
        (folder / "README.md").write_text(card_of(model).replace("user/name", "user/older"))
        (folder / CERTIFICATE).write_bytes((converted / CERTIFICATE).read_bytes())  # trained where it was converted

    again = stage(copied(model, tmp_path / "again", older), "user/name")
    assert not again.own_card and CERTIFICATE not in again.files
    assert card_of(tmp_path / "again") == card_of(copied(model, tmp_path / "plain", lambda folder: None))


def test_a_converted_model_goes_with_its_certificate_and_the_card_of_its_conversion(
    pushed: dict, hub: Hub, converted: Path
):
    assert pushed["user/converted"][0] == 0, pushed["user/converted"]
    files = hub.repositories["user/converted"].branches["main"][-1].files
    assert files.keys() == {path.name for path in converted.iterdir()}
    assert files[CERTIFICATE] == (converted / CERTIFICATE).read_bytes()
    card = files["README.md"].decode()
    metadata = yaml.safe_load(card.split("---")[1])
    assert (metadata["pipeline_tag"], metadata["license"]) == ("fill-mask", "apache-2.0")
    written = (converted / "README.md").read_text()
    assert card.split("## Conversion")[1] == written.split("## Conversion")[1]
    assert "PATH OR HUB ID" not in card


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.yaml", "[", "recipe.yaml: cannot be read"),
        ("train_results.json", "[]", "train_results.json: cannot be read"),
        ("eval_results_test.json", "[", "eval_results_test.json: cannot be read"),
        ("metrics.jsonl", '{"eval_loss": 1}', "metrics.jsonl: cannot be read"),
        ("provenance.md", "Made by hand.", "provenance.md: 'Made by hand.' is no step"),
        ("start_conversion_certificate.json", "{", "start_conversion_certificate.json: not a certificate"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: str, message: str, model: Path, tmp_path: Path):
    folder = copied(model, tmp_path / "damaged", lambda folder: (folder / name).write_text(content))
    with pytest.raises(Exception, match=message) as caught:
        stage(folder, "user/name")
    assert type(caught.value).__name__ == "BertSnliError"
