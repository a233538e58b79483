"""Pairs in, answers out: streams of any length, shared among processes, in their order."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from bert_snli import prediction
from bert_snli.cli import main
from bert_snli.data.pair_files import count_pairs, iterate_pairs
from bert_snli.errors import BertSnliError
from bert_snli.inference import load_classifier, load_tokenizer
from bert_snli.prediction import Predictor
from tests.support.classifiers import random_pairs
from tests.support.processes import LAUNCH


@pytest.fixture
def predictor(model_folder: Path) -> Predictor:
    return Predictor(load_classifier(str(model_folder)), load_tokenizer(str(model_folder)), batch_size=4)


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"premise": p, "hypothesis": h}) + "\n" for p, h in pairs), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_stream_gives_what_a_list_does_in_its_order(predictor: Predictor, num_proc, monkeypatch):
    monkeypatch.setattr(prediction, "CHUNK", 7)
    pairs = random_pairs(30)
    chunks = list(predictor.stream(iter(pairs), num_proc=num_proc))
    assert [len(chunk) for chunk, _ in chunks] == [7, 7, 7, 7, 2]
    assert [pair for chunk, _ in chunks for pair in chunk] == pairs
    streamed = [answer for _, answers in chunks for answer in answers]
    for ours, theirs in zip(streamed, predictor(pairs), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("num_proc", "chunks_ahead"), [(None, 1), (2, 3)])
def test_a_stream_takes_no_more_than_it_needs(predictor: Predictor, num_proc, chunks_ahead, monkeypatch):
    """So memory does not grow with the file."""
    monkeypatch.setattr(prediction, "CHUNK", 5)
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield ("a man runs", "a dog")

    stream = predictor.stream(endless(), num_proc=num_proc)
    for number in range(4):
        next(stream)
        assert taken <= 5 * (number + chunks_ahead)
    stream.close()


@pytest.mark.slow
@pytest.mark.parametrize("pairs_to_ask", [1, 61])
def test_two_processes_write_what_one_does(pairs_to_ask, model_folder: Path, tmp_path: Path, run_python):
    """Also where one of them has no row at all; as `accelerate launch` runs it."""
    source = write_pairs(tmp_path / "pairs.jsonl", random_pairs(pairs_to_ask))
    command = ["predict", model_folder, "--input_file", source, "--output_file"]
    assert main([*map(str, command), str(tmp_path / "one.jsonl")]) == 0
    done = run_python(*LAUNCH, *command, tmp_path / "two.jsonl")
    assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("one", "two"))
    for ours, theirs in zip(map(json.loads, two), map(json.loads, one), strict=True):
        assert ours["scores"] == pytest.approx(theirs.pop("scores"), abs=1e-5)
        assert {name: ours[name] for name in theirs} == theirs


@pytest.mark.slow
def test_two_processes_end_together_where_one_cannot_go_on(model_folder: Path, tmp_path: Path, run_python):
    pairs = [*random_pairs(4), ("a man " * 60, "a dog"), *random_pairs(4)]  # the fifth is the first process's
    source = write_pairs(tmp_path / "pairs.jsonl", pairs)
    options = ["--input_file", source, "--output_file", tmp_path / "out.jsonl", "--truncation", "do_not_truncate"]
    done = run_python(*LAUNCH, "predict", model_folder, *options)
    assert done.returncode != 0 and done.stderr.count("do_not_truncate: a pair of 122 tokens") == 2
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["pairs.jsonl"]


def test_no_pairs_give_no_answers(predictor: Predictor):
    assert predictor([]) == [] and list(predictor.stream([])) == []


def test_nothing_is_written_where_a_row_is_wrong(model_folder: Path, tmp_path: Path, capsys):
    source = write_pairs(tmp_path / "pairs.jsonl", random_pairs(3))
    with source.open("a") as file:
        file.write('{"premise": "a man"}\n')
    target = tmp_path / "out.jsonl"
    target.write_text("of an earlier run\n")
    assert main(["predict", str(model_folder), "--input_file", str(source), "--output_file", str(target)]) == 2
    assert "row 4: no hypothesis" in capsys.readouterr().err
    assert target.read_text() == "of an earlier run\n"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["out.jsonl", "pairs.jsonl"]


def test_a_pair_that_cannot_be_cut_leaves_nothing_behind(model_folder: Path, tmp_path: Path, capsys):
    """Found when the file has been opened for the answers."""
    source = write_pairs(tmp_path / "pairs.jsonl", [("a man " * 60, "a dog")])
    target = tmp_path / "out.jsonl"
    options = ["--input_file", source, "--output_file", target, "--truncation", "do_not_truncate"]
    assert main(["predict", str(model_folder), *map(str, options)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["pairs.jsonl"]


def test_a_link_is_written_through(model_folder: Path, tmp_path: Path):
    source = write_pairs(tmp_path / "pairs.jsonl", random_pairs(3))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    (tmp_path / "real.jsonl").write_text("")
    command = ["predict", model_folder, "--input_file", source, "--output_file", tmp_path / "link.jsonl"]
    assert main([str(word) for word in command]) == 0
    assert (tmp_path / "link.jsonl").is_symlink() and len((tmp_path / "real.jsonl").read_text().splitlines()) == 3


def test_pairs_are_counted_and_an_empty_file_is_refused(tmp_path: Path):
    pairs = random_pairs(12)
    source = write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert count_pairs(source) == 12 and list(iterate_pairs(source)) == pairs
    with pytest.raises(BertSnliError, match="holds no pairs"):
        count_pairs(write_pairs(tmp_path / "none.jsonl", []))


def test_a_device_is_written_to_and_not_replaced(model_folder: Path, tmp_path: Path):
    source = write_pairs(tmp_path / "pairs.jsonl", random_pairs(3))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.extend(pipe.read_text().splitlines()))
    reader.start()
    assert main(["predict", str(model_folder), "--input_file", str(source), "--output_file", str(pipe)]) == 0
    reader.join(timeout=30)
    assert len(read) == 3 and pipe.is_fifo()


def test_a_pipe_cannot_be_asked(tmp_path: Path):
    os.mkfifo(tmp_path / "pairs.jsonl")
    with pytest.raises(BertSnliError, match="cannot be read twice"):
        count_pairs(tmp_path / "pairs.jsonl")


def test_half_a_character_is_named_by_its_row(tmp_path: Path):
    source = write_pairs(tmp_path / "pairs.jsonl", [("a", "b"), ("a \ud800", "b")])
    with pytest.raises(BertSnliError, match="row 2: 'a .*' is not a text that can be written as UTF-8"):
        count_pairs(source)


def test_num_proc_goes_with_a_file(model_folder: Path, capsys):
    assert main(["predict", str(model_folder), "--premise", "a", "--hypothesis", "b", "--num_proc", "2"]) == 2
    assert "--num_proc goes with --input_file" in capsys.readouterr().err
