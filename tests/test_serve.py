"""The web page: what it answers, what it shows of it, its endpoint, and the Space."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import gradio as gr
import pytest
import torch
from gradio_client import Client

from bert_snli.cli import main
from bert_snli.errors import BertSnliError
from bert_snli.inference import load_classifier, load_tokenizer, predict_pairs
from bert_snli.serving import app as page_app
from bert_snli.serving.answering import CUT, MAX_CHARACTERS, SPECIAL, UNKNOWN, WEIGHTS, Answerer
from bert_snli.serving.app import build_app
from bert_snli.serving.page import render
from bert_snli.serving.server import free_port, start
from tests.conftest import random_pairs, save_random_classifier, spare_port

PAIR = ("A man runs, not a zebra...", "the dog isn't a man")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_classifier(tmp_path_factory.mktemp("serve") / "model")


@pytest.fixture(scope="module")
def answerer(folder: Path) -> Answerer:
    return Answerer(str(folder))


@pytest.fixture(scope="module")
def address(answerer: Answerer) -> Iterator[str]:
    app = start(answerer, "a <b>model</b>", "127.0.0.1", spare_port())
    yield app.local_url
    app.close(verbose=False)


def predicted(folder: Path, pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
    return predict_pairs(load_classifier(str(folder)), load_tokenizer(str(folder)), pairs)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_scores_are_those_of_predict(weights: str, folder: Path, answerer: Answerer):
    for pair in [PAIR, *random_pairs(5), ("a man " * 40, "a dog " * 30)]:
        answer = answerer.answer(*pair, weights)
        assert answer.scores == pytest.approx(predicted(folder, [pair])[0], abs=1e-5)  # eager, sdpa; logits of dozens
        assert list(answer.scores.values()) == sorted(answer.scores.values(), reverse=True)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_token_has_its_words_and_its_weight(weights: str, answerer: Answerer):
    sides = answerer.answer(*PAIR, weights).sides
    for side, text in zip(("premise", "hypothesis"), PAIR, strict=True):
        tokens = [token for token in sides[side] if token.kind != SPECIAL]
        assert "".join(token.before + token.text for token in tokens) == text
        assert {token.text for token in tokens if token.kind == UNKNOWN} >= {"premise": {"zebra"}}.get(side, {"the"})
    every = [token for side in sides.values() for token in side]
    assert [token.token for token in every if token.kind == SPECIAL] == ["<cls>", "<sep>", "<sep>"]
    assert all(token.weight >= 0 for token in every)
    assert sum(token.weight for token in every) == pytest.approx(1)


def test_the_gradient_is_that_of_a_small_change(answerer: Answerer):
    """Against finite differences: raise one embedding's scale a little, and see how the lead changes."""
    row = answerer.encoder({"premise": [PAIR[0]], "hypothesis": [PAIR[1]]}).to_pylist()[0]
    inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "token_type_ids")}
    model = answerer.model
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    order = model(**inputs).logits[0].topk(2).indices

    def lead(embeddings_BLD: torch.Tensor) -> float:
        logits = model(inputs_embeds=embeddings_BLD, token_type_ids=inputs["token_type_ids"]).logits[0].double()
        return (logits[order[0]] - logits[order[1]]).item()

    found = WEIGHTS["gradient"](model, inputs)
    place = int(found.argmax())
    products = []
    for dimension in range(embeddings.shape[-1]):
        step = torch.zeros_like(embeddings)
        step[0, place, dimension] = 1e-3
        slope = (lead(embeddings + step) - lead(embeddings - step)) / 2e-3
        products.append(slope * embeddings[0, place, dimension].item())
    assert found[place].item() == pytest.approx(torch.tensor(products).norm().item(), rel=1e-2)


def test_attention_is_what_cls_pays(answerer: Answerer):
    row = answerer.encoder({"premise": [PAIR[0]], "hypothesis": [PAIR[1]]}).to_pylist()[0]
    inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "token_type_ids")}
    found = WEIGHTS["attention"](answerer.model, inputs)
    assert found.shape == (len(row["input_ids"]),)
    assert found.sum().item() == pytest.approx(1, abs=1e-5)


def test_what_is_cut_is_shown_as_cut(answerer: Answerer):
    answer = answerer.answer("a man " * 40, "a dog", "gradient")
    kinds = [token.kind for token in answer.sides["premise"]]
    assert (answer.length, answer.max_length) == (85, 40)
    assert kinds.count(CUT) == 45 and CUT not in [token.kind for token in answer.sides["hypothesis"]]
    page = render(answer, "gradient")
    assert "This pair has 85 tokens; the model reads 40. The 45 that" in page
    assert page.count("bs-cut") == 45 + 2  # and in the notice and the legend


NASTY = "<script>alert(1)</script> \"'& <img src=x onerror=alert(1)> {{x}} ${y}"


def test_text_is_escaped(answerer: Answerer):
    page = render(answerer.answer(NASTY, NASTY, "gradient"), "gradient")
    assert "<script" not in page and "<img" not in page
    words = re.sub(r"<small>.*?</small>", "", page)
    assert unescape(re.sub(r"<[^>]*>", "", words)).count(NASTY) == 2


@pytest.mark.parametrize(
    ("premise", "hypothesis", "message"),
    [("", "a", "No premise"), ("a", " \n", "No hypothesis"), ("a" * (MAX_CHARACTERS + 1), "b", "has 5,001 characters")],
)
def test_what_is_no_pair_is_said(premise: str, hypothesis: str, message: str, answerer: Answerer):
    with pytest.raises(BertSnliError, match=message):
        answerer.answer(premise, hypothesis, "gradient")


def test_the_endpoint_answers_the_client(folder: Path, address: str):
    client = Client(address, verbose=False)
    (expected,) = predicted(folder, [PAIR])
    answer = client.predict(*PAIR, api_name="/predict")
    assert answer["label"] == next(iter(expected))
    assert answer["scores"] == pytest.approx(expected, abs=1e-6)
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/predict"]


def post(address: str, pair: tuple[str, str]) -> dict:
    request = urllib.request.Request(
        f"{address.rstrip('/')}/gradio_api/run/predict",
        json.dumps({"data": pair}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["data"][0]


def test_the_endpoint_answers_plain_http(folder: Path, address: str):
    assert post(address, PAIR)["scores"] == pytest.approx(predicted(folder, [PAIR])[0], abs=1e-6)


def test_the_page_asks_nobody_else(address: str):
    with urllib.request.urlopen(address, timeout=30) as response:
        page = response.read().decode()
    assert "a &lt;b&gt;model&lt;/b&gt;" in page or "<b>model</b>" not in page
    fetched = re.findall(r"(?:src|href)=\"?(https?://[^\s\">]+)", page)
    assert not [link for link in fetched if not link.startswith(("http://127.0.0.1", address))]


def label_file(answerer: Answerer, path: Path):
    return page_app._label_file(answerer, path)


def test_a_file_is_answered(folder: Path, answerer: Answerer, tmp_path: Path):
    pairs = random_pairs(120)
    path = tmp_path / "pairs.csv"
    path.write_text("premise,hypothesis\n" + "".join(f"{p},{h}\n" for p, h in pairs))
    summary, table, download = label_file(answerer, path)
    expected = predicted(folder, pairs)
    assert summary.startswith("**120 pairs**")
    assert len(table.value["data"]) == page_app.ROWS_SHOWN
    assert [row[2] for row in table.value["data"]] == [next(iter(scores)) for scores in expected[:100]]
    answers = [json.loads(line) for line in Path(download.value["path"]).read_text().splitlines()]
    assert [(answer["premise"], answer["hypothesis"]) for answer in answers] == pairs
    assert answers[-1]["scores"] == pytest.approx(expected[-1], abs=1e-6)


def test_a_wrong_file_is_one_line_without_the_servers_paths(answerer: Answerer, tmp_path: Path, monkeypatch):
    path = tmp_path / "pairs.csv"
    path.write_text("premise,claim\na,<b>\n")
    with pytest.raises(BertSnliError) as caught:
        label_file(answerer, path)
    assert str(caught.value).startswith("pairs.csv: row 1: no hypothesis")
    path.write_text("premise,hypothesis\na,b\nc,d\n")
    monkeypatch.setattr(page_app, "MAX_ROWS", 1)
    with pytest.raises(BertSnliError, match="pairs.csv: 2 pairs; give at most 1 at once"):
        label_file(answerer, path)


def test_mistakes_reach_the_page_as_text(answerer: Answerer):
    told = page_app.told_plainly(lambda: (_ for _ in ()).throw(BertSnliError("<b>: no")))
    with pytest.raises(gr.Error) as caught:
        told()
    assert caught.value.message == "&lt;b&gt;: no"
    assert build_app(answerer, "x").analytics_enabled is False


def test_a_port_that_is_taken_is_said(folder: Path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(folder), "--port", str(port)]) == 2
        assert f"--port {port}: is taken" in capsys.readouterr().err
        assert free_port("127.0.0.1", None) != port


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "203.0.113.7"], "--host 203.0.113.7: no address of this machine"),
        (["--space", "x", "--port", "7"], "--port goes with serving"),
    ],
)
def test_wrong_options_are_one_line(options: list[str], message: str, folder: Path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", str(folder), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_model_is_one_line(tmp_path: Path, capsys):
    assert main(["serve", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


def started(command: list, cwd: Path, **environment: str) -> subprocess.Popen:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.Popen(
        list(map(str, command)),
        cwd=cwd,
        env={**kept, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_it_answers(process: subprocess.Popen, address: str) -> dict:
    for _ in range(240):
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        try:
            return post(address, PAIR)
        except OSError:
            time.sleep(0.5)
    raise AssertionError("no answer within two minutes")


def test_the_command_serves_until_it_is_interrupted(folder: Path, tmp_path: Path):
    port = spare_port()
    root = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-m", "bert_snli.cli", "serve", folder, "--port", port]
    process = started(command, tmp_path, PYTHONPATH=root)
    assert until_it_answers(process, f"http://127.0.0.1:{port}")["label"] == next(iter(predicted(folder, [PAIR])[0]))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in err
    assert out.splitlines() == [f"Serving {folder} at http://127.0.0.1:{port}/ (Ctrl-C stops it)", "Stopped."]


def test_a_space_runs_as_it_is(folder: Path, tmp_path: Path, capsys):
    space = tmp_path / "space"
    assert main(["serve", str(folder), "--space", str(space)]) == 0
    assert "Wrote" in capsys.readouterr().out
    assert {path.name for path in space.iterdir()} == {"app.py", "requirements.txt", "README.md", "bert_snli", "model"}
    front = (space / "README.md").read_text().split("---")[1]
    assert "sdk: gradio" in front and "app_file: app.py" in front
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in (space / "requirements.txt").read_text().split())
    port = spare_port()
    process = started([sys.executable, "app.py"], space, GRADIO_SERVER_NAME="127.0.0.1", GRADIO_SERVER_PORT=str(port))
    try:
        answer = until_it_answers(process, f"http://127.0.0.1:{port}")
    finally:
        process.kill()
    assert answer["scores"] == pytest.approx(predicted(folder, [PAIR])[0], abs=1e-6)
    assert main(["serve", str(folder), "--space", str(space)]) == 2
    assert f"--space {space}: already holds files; name another folder\n" in capsys.readouterr().err
