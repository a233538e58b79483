"""Messages about common mistakes: one line that says what is wrong, where, and what to do, with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch

from bert_snli.cli import main
from bert_snli.data.snli import load_evaluation_set, load_snli
from bert_snli.errors import BertSnliError
from bert_snli.files import TRAIN_RESULTS
from bert_snli.training.run_folder import RUN
from tests.support.command_line import error_line
from tests.support.hub_server import hub_client, running_hub

HEADER = "premise,hypothesis,label\n"
PAIR = {"premise": "A dog runs.", "hypothesis": "It sits.", "label": "neutral"}


def json_lines(*premises: object) -> bytes:
    return "".join(json.dumps({**PAIR, "premise": premise}) + "\n" for premise in premises).encode()


# The name and the content of a file, and what each command says about it.
FILES = {
    "no header": (
        "pairs.csv",
        b"A dog runs.,It sits.,neutral\nA man runs.,He sits.,neutral\n",
        ["no column", "premise (found: 'A dog runs.', 'It sits.', 'neutral'); name the columns premise"],
    ),
    "semicolons": (
        "pairs.csv",
        b"premise;hypothesis;label\nA dog, a cat;It sits.;neutral\n",
        ["its columns are separated by ';', not by ','; save the file with ',' between the columns"],
    ),
    "commas in a .tsv file": ("pairs.tsv", HEADER.encode() + b"A dog,It sits.,neutral\n", ["separated by ',', not by"]),
    "upper case": (
        "pairs.csv",
        b"Premise,hypothesis,label\nA dog runs.,It sits.,neutral\n",
        ["column 'Premise' must be written 'premise'; rename the column"],
    ),
    "only a header": ("pairs.csv", HEADER.encode(), ["pairs.csv: has no rows; "]),
    "not UTF-8": (
        "pairs.csv",
        HEADER.encode() + "A dog.,It runs.,neutral\nA café.,It is open.,neutral\n".encode("latin-1"),
        ["line 3 is not UTF-8 (byte 6 is 0xe9); save the file as UTF-8"],
    ),
    "not UTF-8, JSON": (
        "pairs.jsonl",
        json_lines("A dog.") + b'{"premise": "\xff"}\n',
        ["line 2 is not UTF-8 ("],
    ),
    "UTF-16": ("pairs.csv", HEADER.encode("utf-16"), ["line 1 is not UTF-8 (byte 1 is 0xff); save the file as UTF-8"]),
    "not JSON": ("pairs.jsonl", json_lines("A dog.") + b"{premise}\n", ["line 2 is not JSON (", "remove the line"]),
    "number": ("pairs.jsonl", json_lines(3), ["row 1: premise is 3, not a text; write it in quotes or remove the row"]),
    "number after text": ("pairs.jsonl", json_lines("A dog.", 3), [" 2: premise is 3, not a text; write it in quotes"]),
    "no text": ("pairs.jsonl", json_lines("A dog.", None), ["row 2: no premise; correct or remove the row"]),
}
NUMBERS = "".join(f"A dog runs.,It sits.,{label}\n" for label in (2, 0, 1, 1))


@pytest.mark.parametrize("command", ["predict", "evaluate", "finetune"])
@pytest.mark.parametrize("case", FILES)
def test_error_in_a_file_of_pairs_says_where_it_is(
    case: str, command: str, model_folder: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    name, content, messages = FILES[case]
    (source := tmp_path / name).write_bytes(content)
    options = {
        "predict": [model_folder, "--input_file", source],
        "evaluate": [model_folder, "--dataset_name_or_path", source],
        "finetune": ["--model_name_or_path", model_folder, "--dataset_name_or_path", corpus, "--train_file", source],
    }[command]
    if command == "finetune":
        options += ["--max_length", 32, "--output_dir", tmp_path / "run"]
    line = error_line([command, *options], capsys)
    assert line.startswith(f"bert-snli {command}: error: ") and str(source) in line
    for message in messages:
        assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "option", "message"),
    [
        ("predict", "--input_file", "row 2: more cells than column names; write texts with ',' in quotes"),
        ("evaluate", "--dataset_name_or_path", "Expected 3 fields in line 3, saw 4); correct the file"),
    ],
)
def test_row_with_too_many_cells_is_named(
    command: str, option: str, message: str, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (source := tmp_path / "pairs.csv").write_text(HEADER + "A dog.,It sits.,neutral\nA dog, a cat,It sits.,neutral\n")
    line = error_line([command, model_folder, option, source], capsys)
    assert str(source) in line and message in line


def test_columns_without_a_known_name_are_named_by_an_option(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (source := tmp_path / "pairs.csv").write_text("text,claim,class\nA dog.,It sits.,neutral\n")
    message = "name the columns premise, hypothesis, label, or set --columns premise=NAME"
    assert message in error_line(["evaluate", model_folder, "--dataset_name_or_path", source], capsys)


def test_labels_that_are_numbers_are_refused_with_their_values(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (source := tmp_path / "pairs.csv").write_text(HEADER + NUMBERS)
    message = "pairs.csv: the labels 0, 1, 2 are numbers without names; write entailment, contradiction, neutral or - "
    with pytest.raises(BertSnliError, match=message) as caught:
        load_evaluation_set(str(source))
    assert str(caught.value).endswith(", or set labels 0=NAME 1=NAME 2=NAME")
    with pytest.raises(BertSnliError, match=message):
        load_snli(train_file=str(source), splits=["train"])
    line = error_line(["evaluate", model_folder, "--dataset_name_or_path", source], capsys)
    assert line.endswith("or set --labels 0=NAME 1=NAME 2=NAME")


# The Hub


@pytest.mark.parametrize("is_online", [True, False], ids=["unknown name", "no network"])
@pytest.mark.parametrize("kind", ["model", "data"])
def test_unknown_hub_id_and_missing_network_are_told_apart(
    kind: str, is_online: bool, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
):
    command = ["evaluate", model_folder, "--dataset_name_or_path", "user/unknown"]
    if kind == "model":
        command = ["predict", "user/unknown", "--premise", "a man", "--hypothesis", "a dog"]
    with running_hub() as hub, hub_client(hub.endpoint if is_online else None, tmp_path):
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", not is_online)
        line = error_line(command, capsys)
    assert "user/unknown: no " in line
    assert ("on the Hub that your token can read" in line) is is_online
    assert ("the Hub cannot be reached" in line) is not is_online


# The output folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            [RUN],
            "already holds a run; set --resume_from_checkpoint auto to continue it, give another folder, or set ",
        ),
        ([RUN, TRAIN_RESULTS, "checkpoint-2/progress.json"], "already holds a run; set --resume_from_checkpoint auto"),
        ([RUN, TRAIN_RESULTS], "already holds files; give another folder or set --overwrite_output_dir"),
    ],
    ids=["unfinished", "finished with checkpoints", "finished without checkpoints"],
)
def test_existing_run_folder_offers_to_resume_if_that_is_possible(
    files: list[str], message: str, pretrained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    for name in files:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("{}")
    command = ["finetune", "--model_name_or_path", pretrained, "--dataset_name_or_path", corpus]
    assert f"{tmp_path / 'run'}: {message}" in error_line([*command, "--output_dir", tmp_path / "run"], capsys)


# Arguments in the wrong place


def test_swapped_arguments_are_named(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    data = tmp_path / "pairs.jsonl"
    data.write_bytes(json_lines("A dog."))
    out = tmp_path / "out"
    finetune = ("finetune", "--output_dir", out, "--max_length", 32, "--model_name_or_path")
    for command, message in {
        ("convert", model_folder, "--output_dir", out): f"{model_folder}: already a model folder; use it",
        ("evaluate", data): f"{data}: is not a model folder; give the data set as --dataset_name_or_path",
        ("evaluate", data, "--output_dir", out): f"{data}: is a file, not a model folder; give the folder",
        ("predict", data, "--input_file", data): f"{data}: is a file, not a model folder; give the folder",
        ("predict", data, "--input_file", model_folder): f"--input_file {model_folder}: unknown file type ''; give a",
        (*finetune, data): f"{data}: is a file, not a model folder; give the folder",
        ("finetune", data, *finetune[1:-1]): f"{data}: is a file, not a model folder; give the folder",
    }.items():
        assert message in error_line(list(command), capsys)
    assert not out.exists()


def test_gpu_ids_are_refused_without_a_gpu(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = ["finetune", "--model_name_or_path", pretrained, "--output_dir", tmp_path / "run", "--gpu_ids", "0"]
    assert "--gpu_ids 0: this machine has no GPU that PyTorch can use; leave --gpu_ids out" in error_line(
        command, capsys
    )
    assert not (tmp_path / "run").exists()


# One pair


@pytest.mark.parametrize("name", ["premise", "hypothesis"])
def test_empty_text_is_refused(name: str, model_folder: Path, capsys: pytest.CaptureFixture):
    texts = {"premise": "a man", "hypothesis": "a dog", name: " "}
    command = ["predict", model_folder, "--premise", texts["premise"], "--hypothesis", texts["hypothesis"]]
    assert f"error: --{name}: the text is empty; give a sentence" in error_line(command, capsys)


@pytest.mark.parametrize(
    ("premise", "notes"),
    [
        ("a man runs", []),
        ("a man " * 30, ["the pair has 65 tokens; it is truncated to 40, the model's maximum (max_length)"]),
        (
            "Ein Mann rennt",
            ["premise: the model knows none of its words, so the prediction is meaningless; use"],
        ),
        ("Ein man rennt", []),
    ],
    ids=["known", "too long", "all words unknown", "one word known"],
)
def test_predict_notes_truncation_and_unknown_words(
    premise: str, notes: list[str], model_folder: Path, capsys: pytest.CaptureFixture
):
    assert main(["predict", str(model_folder), "--premise", premise, "--hypothesis", "a dog"]) == 0
    printed = capsys.readouterr()
    found = [line for line in printed.err.splitlines() if "note:" in line]
    for line, note in zip(found, notes, strict=True):
        assert line.startswith(f"bert-snli: note: {note}")
    assert len(printed.out.splitlines()) == 3
