"""Prediction: streams, several processes, and the files that `bert-snli predict` writes."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import pipeline

from bert_snli import prediction
from bert_snli.cli import main
from bert_snli.inference import load_classifier, load_tokenizer
from bert_snli.modeling.labels import D2L_LABELS
from bert_snli.prediction import Predictor
from tests.support.classifiers import random_pairs, write_pairs
from tests.support.processes import LAUNCH


@pytest.fixture
def predictor(model_folder: Path) -> Predictor:
    return Predictor(load_classifier(str(model_folder)), load_tokenizer(str(model_folder)), batch_size=4)


def test_stream_gives_the_predictions_of_a_list_in_order(predictor: Predictor, monkeypatch):
    monkeypatch.setattr(prediction, "CHUNK_SIZE", 7)
    pairs = random_pairs(30)
    chunks = list(predictor.stream(iter(pairs)))
    assert [len(chunk) for chunk, _ in chunks] == [7, 7, 7, 7, 2]
    assert [pair for chunk, _ in chunks for pair in chunk] == pairs
    streamed = [scores for _, predictions in chunks for scores in predictions]
    for found, expected in zip(streamed, predictor(pairs), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


def test_stream_reads_one_chunk_at_a_time(predictor: Predictor, monkeypatch):
    """So memory does not grow with the file."""
    monkeypatch.setattr(prediction, "CHUNK_SIZE", 5)
    num_read = 0

    def generate_pairs():
        nonlocal num_read
        while True:
            num_read += 1
            yield ("a man runs", "a dog")

    stream = predictor.stream(generate_pairs())
    for number in range(1, 5):
        next(stream)
        assert num_read == 5 * number
    stream.close()


@pytest.mark.slow
@pytest.mark.parametrize("num_pairs", [1, 61])
def test_two_processes_write_the_predictions_of_one(num_pairs, model_folder: Path, tmp_path: Path, run_python):
    """With one pair, the second process has none. `accelerate launch` starts the processes."""
    source = write_pairs(tmp_path / "pairs.jsonl", random_pairs(num_pairs))
    command = ["predict", model_folder, "--input_file", source, "--output_file"]
    assert main([*map(str, command), str(tmp_path / "one.jsonl")]) == 0
    done = run_python(*LAUNCH, *command, tmp_path / "two.jsonl")
    assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("one", "two"))
    for found, expected in zip(map(json.loads, two), map(json.loads, one), strict=True):
        assert found["scores"] == pytest.approx(expected.pop("scores"), abs=1e-5)
        assert {name: found[name] for name in expected} == expected


@pytest.mark.slow
def test_both_processes_stop_when_one_of_them_fails(model_folder: Path, tmp_path: Path, run_python):
    pairs = [*random_pairs(4), ("a man " * 60, "a dog"), *random_pairs(4)]  # the first process gets the fifth pair
    source = write_pairs(tmp_path / "pairs.jsonl", pairs)
    options = ["--input_file", source, "--output_file", tmp_path / "out.jsonl", "--truncation", "do_not_truncate"]
    done = run_python(*LAUNCH, "predict", model_folder, *options)
    assert done.returncode != 0 and done.stderr.count("do_not_truncate: a pair of 122 tokens") == 2
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["pairs.jsonl"]


def test_each_way_of_calling_gives_the_scores_of_the_pipeline(predictor: Predictor, model_folder: Path):
    nli = pipeline("natural-language-inference", str(model_folder), trust_remote_code=True)
    pairs = random_pairs(5)
    inputs = {
        "two texts": pairs[0],
        "tuple": (pairs[0],),
        "dict": ({"premise": pairs[0][0], "hypothesis": pairs[0][1]},),
        "dict as in text-classification": ({"text": pairs[0][0], "text_pair": pairs[0][1]},),
        "list of tuples": (pairs,),
        "list of lists": ([list(pair) for pair in pairs],),
        "list of dicts": ([{"premise": premise, "hypothesis": hypothesis} for premise, hypothesis in pairs],),
    }
    for arguments in inputs.values():
        found, expected = predictor(*arguments), nli(*arguments, top_k=None)
        if isinstance(found, dict):
            found, expected = [found], [expected]
        assert [list(scores) for scores in found] == [[entry["label"] for entry in labels] for labels in expected]
        for scores, labels in zip(found, expected, strict=True):
            assert list(scores.values()) == pytest.approx([entry["score"] for entry in labels], abs=1e-5)


def test_no_pairs_give_no_predictions(predictor: Predictor):
    assert predictor([]) == [] and list(predictor.stream([])) == []


def test_invalid_row_leaves_the_output_file_unchanged(model_folder: Path, tmp_path: Path, capsys):
    source = write_pairs(tmp_path / "pairs.jsonl", random_pairs(3))
    with source.open("a") as file:
        file.write('{"premise": "a man"}\n')
    target = tmp_path / "out.jsonl"
    target.write_text("earlier output\n")
    assert main(["predict", str(model_folder), "--input_file", str(source), "--output_file", str(target)]) == 2
    assert "row 4: no column hypothesis (found: 'premise'); name the columns" in capsys.readouterr().err
    assert target.read_text() == "earlier output\n"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["out.jsonl", "pairs.jsonl"]


def test_pair_that_does_not_fit_leaves_no_output_file(model_folder: Path, tmp_path: Path, capsys):
    """The error occurs after the output file has been opened."""
    source = write_pairs(tmp_path / "pairs.jsonl", [("a man " * 60, "a dog")])
    target = tmp_path / "out.jsonl"
    options = ["--input_file", source, "--output_file", target, "--truncation", "do_not_truncate"]
    assert main(["predict", str(model_folder), *map(str, options)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["pairs.jsonl"]


def test_output_to_a_symbolic_link_writes_its_target(model_folder: Path, tmp_path: Path):
    source = write_pairs(tmp_path / "pairs.jsonl", random_pairs(3))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    (tmp_path / "real.jsonl").write_text("")
    command = ["predict", model_folder, "--input_file", source, "--output_file", tmp_path / "link.jsonl"]
    assert main([str(word) for word in command]) == 0
    assert (tmp_path / "link.jsonl").is_symlink() and len((tmp_path / "real.jsonl").read_text().splitlines()) == 3


def test_named_pipe_is_refused_as_output(model_folder: Path, tmp_path: Path, capsys):
    """A file replaces the output file when all predictions are written; it must not replace a device or a pipe."""
    source = write_pairs(tmp_path / "pairs.jsonl", random_pairs(3))
    os.mkfifo(tmp_path / "pipe")
    command = ["predict", model_folder, "--input_file", source, "--output_file", tmp_path / "pipe"]
    assert main([str(word) for word in command]) == 2
    assert "pipe: cannot be written" in capsys.readouterr().err and (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_standard_input_gives_the_predictions_of_the_file(
    suffix: str, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    source = write_pairs(tmp_path / "pairs.jsonl", random_pairs(5))
    if suffix != ".jsonl":
        rows = [json.loads(line) for line in source.read_text().splitlines()]
        source = tmp_path / f"pairs{suffix}"
        with source.open("w", newline="") as file:
            table = csv.DictWriter(file, ["premise", "hypothesis"], delimiter="\t" if suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(source.read_bytes())))
    assert main(["predict", str(model_folder), "--input_file", "-"]) == 0
    from_stdin = capsys.readouterr().out
    assert main(["predict", str(model_folder), "--input_file", str(source)]) == 0
    assert from_stdin == capsys.readouterr().out and from_stdin.count("\n") == 5


def test_error_in_standard_input_names_the_row(model_folder: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    lines = b'{"premise": "a man", "hypothesis": "a dog"}\n{"premise": "a man"}\n'
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    assert main(["predict", str(model_folder), "--input_file", "-"]) == 2
    assert "--input_file -: row 2: no column hypothesis" in capsys.readouterr().err


@pytest.mark.parametrize("by_option", [True, False], ids=["option", "name of the file"])
@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_formats_hold_the_same_predictions(form: str, by_option: bool, model_folder: Path, tmp_path: Path):
    pairs = random_pairs(5)
    source = write_pairs(tmp_path / "pairs.jsonl", pairs)
    target = tmp_path / ("predictions.txt" if by_option else f"predictions.{form}")
    command = ["predict", str(model_folder), "--input_file", str(source), "--output_file", str(target)]
    assert main(command + ["--output_format", form] * by_option) == 0
    if form == "csv":
        with target.open(newline="") as file:
            rows = [
                row | {"scores": {label: float(row[label]) for label in D2L_LABELS}} for row in csv.DictReader(file)
            ]
    else:
        text = target.read_text()
        rows = json.loads(text) if form == "json" else [json.loads(line) for line in text.splitlines()]
    predictor = Predictor(load_classifier(str(model_folder)), load_tokenizer(str(model_folder)))
    for row, pair, scores in zip(rows, pairs, predictor(pairs), strict=True):
        assert (row["premise"], row["hypothesis"], row["label"]) == (*pair, next(iter(scores)))
        assert row["scores"] == pytest.approx(scores, abs=1e-12)


def test_one_pair_is_printed_as_json(model_folder: Path, capsys: pytest.CaptureFixture):
    pair = ["--premise", "a man", "--hypothesis", "a dog"]
    assert main(["predict", str(model_folder), *pair, "--output_format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["premise"], row["hypothesis"], len(row["scores"])) == ("a man", "a dog", 3)


def test_bfloat16_predictions_are_close_to_those_of_float32(model_folder: Path, tmp_path: Path):
    source = write_pairs(tmp_path / "pairs.jsonl", random_pairs(20))
    scores = {}
    for dtype in ("float32", "bfloat16"):
        target = tmp_path / f"{dtype}.jsonl"
        command = ["predict", str(model_folder), "--input_file", str(source), "--output_file", str(target)]
        assert main([*command, "--dtype", dtype]) == 0
        scores[dtype] = [json.loads(line)["scores"] for line in target.read_text().splitlines()]
    differences = [
        abs(one[label] - other[label])
        for one, other in zip(scores["float32"], scores["bfloat16"], strict=True)
        for label in one
    ]
    assert 0 < max(differences) < 0.2  # large, because the random weights are large
