"""`bert-snli serve`: predictions equal those of `predict`, token weights are correct, and user text is escaped."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout, suppress
from html.parser import HTMLParser
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from gradio_client import Client
from packaging.requirements import Requirement

from bert_snli.cli import main
from bert_snli.data.pair_encoding import make_encoder
from bert_snli.errors import BertSnliError
from bert_snli.inference import load_classifier, load_tokenizer
from bert_snli.prediction import Predictor
from bert_snli.serving.app import (
    MARK_STALE,
    MAX_ROWS,
    MODEL_FILES,
    NUM_DISPLAYED_ROWS,
    build_app,
    list_requirements,
    predict_file,
    render_explanation,
    start,
)
from bert_snli.serving.explanation import (
    MAX_CHARACTERS,
    SPECIAL,
    TRUNCATED,
    UNKNOWN,
    ExplainedPredictor,
    gradient_times_input,
)
from tests.support.command_line import error_line
from tests.support.processes import REPOSITORY, unused_port
from tests.support.trained_classifier import ACTIVITIES, ANIMALS, KNOWN_PAIRS, MAX_LENGTH

MARKUP = "<script>window.x=1</script><img src=x onerror='window.x=1'>"
PAIRS = [
    *KNOWN_PAIRS.values(),
    ('A  "dog" isn’t\n running …', "A wombat (who?) sleeps; I'd say so."),
    (MARKUP, "${1+1} {{value}} & <b>bold</b>"),
    ("A dog is running in the park. " * 10, "The dog is hungry."),
    ("A dog.", "The dog is hungry. " * 10),
]


def predict_pairs(folder: Path, pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
    """Predict `pairs` with a newly loaded model, as `bert-snli predict` does."""
    return Predictor(load_classifier(str(folder)), load_tokenizer(str(folder)))(pairs)


@pytest.mark.parametrize("pair", PAIRS)
def test_scores_equal_those_of_predict(trained_classifier: Path, predictor: ExplainedPredictor, pair: tuple[str, str]):
    (expected,) = predict_pairs(trained_classifier, [pair])
    scores = predictor.explain(*pair).scores
    assert list(scores) == list(expected)
    assert scores == pytest.approx(expected, abs=1e-6)


def test_scores_equal_those_of_predict_when_the_config_lists_labels_in_another_order(
    trained_classifier: Path, tmp_path: Path
):
    shutil.copytree(trained_classifier, tmp_path / "trained_classifier")
    config = json.loads((tmp_path / "trained_classifier" / "config.json").read_text())
    config["id2label"] = {number: config["id2label"][number] for number in ("2", "0", "1")}
    (tmp_path / "trained_classifier" / "config.json").write_text(json.dumps(config))
    reordered = ExplainedPredictor(str(tmp_path / "trained_classifier"))
    for label, pair in KNOWN_PAIRS.items():
        assert next(iter(reordered.explain(*pair).scores)) == label
        assert next(iter(reordered([pair])[0])) == label


def test_model_of_the_tests_predicts_the_known_pairs(predictor: ExplainedPredictor):
    for label, pair in KNOWN_PAIRS.items():
        assert next(iter(predictor.explain(*pair).scores)) == label


@pytest.mark.parametrize("pair", PAIRS)
def test_shown_tokens_are_the_inputs_of_the_model_and_shown_words_are_the_text_of_the_user(
    predictor: ExplainedPredictor, pair: tuple[str, str]
):
    explanation = predictor.explain(*pair)
    read = [token for side in explanation.tokens.values() for token in side if token.kind != TRUNCATED]
    encoder = make_encoder(predictor.model.config, predictor.tokenizer)
    row = encoder.encode([pair[0]], [pair[1]]).to_pylist()[0]
    assert predictor.tokenizer.convert_tokens_to_ids([token.token for token in read]) == row["input_ids"]
    for text, side in zip(pair, explanation.tokens.values(), strict=True):
        words = [token for token in side if token.kind != SPECIAL]
        assert "".join(token.space + token.text for token in words) == text.rstrip()
        assert not any(token.space.strip() for token in words)


def test_unknown_words_are_marked_and_explained(predictor: ExplainedPredictor):
    explanation = predictor.explain("A wombat is sleeping.", "An animal is sleeping.")
    kinds = {token.text: token.kind for token in explanation.tokens["premise"] if token.text}
    assert [word for word, kind in kinds.items() if kind == UNKNOWN] == ["wombat"]
    html = render_explanation(explanation)
    assert re.search(r'bs-unknown"[^>]*title="token &lt;unk&gt;, [\d.]+%">wombat<small>&lt;unk&gt;</small>', html)
    assert "not in the vocabulary" in html
    assert "not in the vocabulary" not in render_explanation(predictor.explain(*KNOWN_PAIRS["neutral"]))


def test_truncated_tokens_are_shown_as_not_read(predictor: ExplainedPredictor):
    premise, hypothesis = PAIRS[-2]
    explanation = predictor.explain(premise, hypothesis)
    truncated = [token for token in explanation.tokens["premise"] if token.kind == TRUNCATED]
    assert explanation.length == 80 + 5 + 3 and explanation.max_length == MAX_LENGTH
    assert len(truncated) == explanation.length - MAX_LENGTH
    assert all(token.weight == 0 for token in truncated)
    html = render_explanation(explanation)
    assert f"This pair has {explanation.length} tokens; the model reads {MAX_LENGTH}." in html
    assert f"The {len(truncated)} tokens that are struck through" in html
    assert html.count('title="token the, not read"') == 8


@pytest.mark.parametrize("pair", PAIRS)
def test_weights_of_the_tokens_that_the_model_reads_sum_to_one(predictor: ExplainedPredictor, pair: tuple[str, str]):
    explanation = predictor.explain(*pair)
    tokens = chain.from_iterable(explanation.tokens.values())
    weights = [token.weight for token in tokens if token.kind != TRUNCATED]
    assert len(weights) == min(explanation.length, MAX_LENGTH)
    assert all(0 <= weight <= 1 for weight in weights)
    assert sum(weights) == pytest.approx(1, abs=1e-5)


@pytest.fixture
def float64_model_and_inputs(trained_classifier: Path) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The trained classifier in float64, and an encoded pair."""
    model = load_classifier(str(trained_classifier)).double()
    return model, dict(load_tokenizer(str(trained_classifier))(*KNOWN_PAIRS["neutral"], return_tensors="pt"))


def test_gradient_weights_equal_finite_differences(float64_model_and_inputs):
    model, inputs = float64_model_and_inputs
    found = gradient_times_input(model, inputs)
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
    order = model(inputs_embeds=embeddings, **inputs).logits[0].argsort(descending=True)

    def margin(place: int, dimension: int, step: float) -> float:
        moved = embeddings.clone()
        moved[0, place, dimension] *= 1 + step
        logits = model(inputs_embeds=moved, **inputs).logits[0]
        return (logits[order[0]] - logits[order[1]]).item()

    for place in (0, 2, embeddings.shape[1] - 1):
        slopes = [
            (margin(place, dimension, 1e-5) - margin(place, dimension, -1e-5)) / 2e-5
            for dimension in range(embeddings.shape[2])
        ]
        assert found[place].item() == pytest.approx(torch.tensor(slopes, dtype=torch.float64).norm().item(), rel=1e-5)


class Tags(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.values: dict[str, str | None] = {}  # of the last tag with each attribute
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.values.update(attrs)


def test_text_of_users_is_escaped(predictor: ExplainedPredictor):
    plain, with_markup = (
        Tags(render_explanation(predictor.explain(*pair)))
        for pair in [("A wombat. " * 10, "A dog."), ('<mask>" onclick="x' + MARKUP, "'><i>" + MARKUP)]
    )
    assert plain.tags == with_markup.tags == set("div p table tr th td h3 span small ul li".split())
    assert with_markup.attributes == plain.attributes


@pytest.mark.parametrize("pair", PAIRS)
def test_prediction_names_its_pair_for_the_comparison_with_the_text_boxes(
    predictor: ExplainedPredictor, pair: tuple[str, str]
):
    values = Tags(render_explanation(predictor.explain(*pair))).values
    assert (values["data-premise"], values["data-hypothesis"]) == pair


def test_page_predicts_on_enter_and_compares_texts_with_the_prediction_on_every_change(predictor: ExplainedPredictor):
    """In a text box of one line Gradio submits on Enter; in one of several lines on Shift+Enter."""
    config = build_app(predictor).get_config_file()
    boxes = {entry["id"]: entry["props"] for entry in config["components"] if entry["type"] == "textbox"}
    assert {(box["label"], box["lines"], box["max_lines"]) for box in boxes.values()} == {
        ("Premise", 1, 8),
        ("Hypothesis", 1, 8),
    }
    (output,) = [entry["id"] for entry in config["components"] if entry["props"].get("elem_id") == "prediction"]
    events = [(set(map(tuple, event["targets"])), event) for event in config["dependencies"]]
    (submit,) = [event for targets, event in events if {(box, "submit") for box in boxes} <= targets]
    (change,) = [event for targets, event in events if {(box, "change") for box in boxes} <= targets]
    assert (submit["inputs"], submit["outputs"]) == (list(boxes), [output])
    assert (output, "change") in set(map(tuple, change["targets"]))
    assert (change["inputs"], change["outputs"], change["backend_fn"], change["js"]) == (
        list(boxes), [], False, MARK_STALE,
    )  # fmt: skip


def test_title_of_the_page_names_the_task_and_the_model(predictor: ExplainedPredictor):
    config = build_app(predictor).get_config_file()
    headings = [entry["props"]["value"] for entry in config["components"] if "<h1>" in str(entry["props"].get("value"))]
    assert config["title"] == "Natural language inference with trained_classifier"
    assert len(headings) == 1 and f"<h1>{config['title']}</h1>" in headings[0]


@pytest.mark.parametrize(
    ("premise", "hypothesis", "message"),
    [
        ("A dog.", " \n", "No hypothesis: type a sentence"),
        ("", "A dog.", "No premise: type a sentence"),
        ("dog " * MAX_CHARACTERS, "A dog.", f"The premise has {4 * MAX_CHARACTERS:,} characters; give at most 5,000"),
        ("A \ud800 dog.", "A dog.", "is not a text that can be written as UTF-8"),
    ],
)
def test_invalid_pair_is_refused_in_one_line(
    predictor: ExplainedPredictor, premise: str, hypothesis: str, message: str
):
    with pytest.raises(BertSnliError, match=message) as refusal:
        predictor.explain(premise, hypothesis)
    assert "\n" not in str(refusal.value)


def test_predictions_of_a_file_equal_those_of_predict(
    trained_classifier: Path, predictor: ExplainedPredictor, tmp_path: Path
):
    path = tmp_path / "pairs.csv"
    pairs = [*KNOWN_PAIRS.values(), ("A dog.", MARKUP.replace('"', ""))] * (NUM_DISPLAYED_ROWS // 2)
    path.write_text("premise,hypothesis\n" + "".join(f'"{premise}","{hypothesis}"\n' for premise, hypothesis in pairs))
    summary, predictions_file, table = predict_file(predictor, path)
    expected = predict_pairs(trained_classifier, pairs)
    lines = [json.loads(line) for line in predictions_file.read_text().splitlines()]
    assert [(line["premise"], line["hypothesis"]) for line in lines] == pairs
    for line, scores in zip(lines, expected, strict=True):
        assert line["label"] == next(iter(scores))
        assert line["scores"] == pytest.approx(scores, abs=1e-6)
    assert f"**{len(pairs)} pairs**" in summary and f"the first {NUM_DISPLAYED_ROWS} below" in summary
    assert table.count("<tr>") == 1 + NUM_DISPLAYED_ROWS
    assert not Tags(table).tags & {"script", "img"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "pairs.csv",
            "premise,conclusion\na,b\n",
            "pairs.csv: row 1: no column hypothesis (found: 'premise', 'conclusion'); name the columns",
        ),
        ("pairs.jsonl", '{"premise": "a"', "pairs.jsonl: line 1 is not JSON ("),
        ("pairs.tsv", "premise\thypothesis\n", "pairs.tsv: has no rows"),
        (
            "pairs.csv",
            "premise,hypothesis\n" + "a,b\n" * (MAX_ROWS + 1),
            "pairs.csv: 10,001 pairs; give at most 10,000",
        ),
    ],
)
def test_invalid_file_is_refused_in_one_line_without_paths_of_the_server(
    predictor: ExplainedPredictor, tmp_path: Path, name: str, content: str, message: str
):
    (tmp_path / name).write_text(content)
    with pytest.raises(BertSnliError) as refusal:
        predict_file(predictor, tmp_path / name)
    assert str(refusal.value).startswith(message)
    assert str(tmp_path) not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def post(url: str, body: bytes, content_type: str = "application/json") -> tuple[int, Any]:
    """Send a POST request. Return the status of the response, and its JSON value or text."""
    request = urllib.request.Request(url, body, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else text


def predict_neutral_pair(address: str) -> str:
    """Return the label that the server predicts for the neutral one of `KNOWN_PAIRS`."""
    status, response = post(f"{address}/gradio_api/run/predict", json.dumps({"data": KNOWN_PAIRS["neutral"]}).encode())
    assert status == 200
    return response["data"][0]["label"]


def test_client_programs_get_the_scores_of_predict(trained_classifier: Path, address: str):
    pair = KNOWN_PAIRS["contradiction"]
    (scores,) = predict_pairs(trained_classifier, [pair])
    client = Client(address, verbose=False)
    predictions = [
        client.predict(*pair, api_name="/predict"),
        client.predict(premise=pair[0], hypothesis=pair[1], api_name="/predict"),
    ]
    status, response = post(f"{address}/gradio_api/run/predict", json.dumps({"data": pair}).encode())
    assert status == 200
    predictions.extend(response["data"])
    for prediction in predictions:
        assert prediction["label"] == "contradiction"
        assert prediction["scores"] == pytest.approx(scores, abs=1e-6)
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/predict"]


def test_predictions_do_not_depend_on_concurrent_requests(trained_classifier: Path, tmp_path: Path):
    """28 threads at the same time: 4 predict files of 300 pairs, 4 compute token weights, 20 are HTTP clients."""
    singles = [*KNOWN_PAIRS.values(), ("A wombat is eating.", "The bird is hungry."), *PAIRS[-2:]]
    files = [  # few words and lengths, other ones than those of the single pairs
        [(f"{animal} " * (1 + row % 3), doing) for row in range(100) for doing in ACTIVITIES] for animal in ANIMALS
    ]
    expected = {
        pair: scores
        for pairs in [*([pair] for pair in singles), *([*dict.fromkeys(file)] for file in files)]
        for pair, scores in zip(
            pairs,
            predict_pairs(trained_classifier, pairs),
            strict=True,
        )
    }
    predictor = ExplainedPredictor(str(trained_classifier))
    app = start(predictor, "127.0.0.1", unused_port())
    barrier = threading.Barrier(28)

    def predict_one_file(number: int) -> list[tuple[tuple[str, str], dict[str, float]]]:
        path = tmp_path / str(number) / "pairs.jsonl"
        path.parent.mkdir()
        path.write_text("".join(json.dumps({"premise": p, "hypothesis": h}) + "\n" for p, h in files[number]))
        _, predictions_file, _ = predict_file(predictor, path)
        lines = [json.loads(line) for line in predictions_file.read_text().splitlines()]
        assert len(lines) == 300
        return [((line["premise"], line["hypothesis"]), line["scores"]) for line in lines]

    def predict_over_http() -> list[tuple[tuple[str, str], dict[str, float]]]:
        found = []
        for pair in singles:
            status, response = post(f"{app.local_url}gradio_api/run/predict", json.dumps({"data": pair}).encode())
            assert status == 200, response
            found.append((pair, response["data"][0]["scores"]))
        return found

    def compute_weights() -> list[tuple[tuple[str, str], dict[str, float]]]:
        return [(pair, predictor.explain(*pair).scores) for pair in singles]

    def run_thread(number: int) -> list[tuple[tuple[str, str], dict[str, float]]]:
        barrier.wait(timeout=60)
        if number < len(files):
            return predict_one_file(number)
        return compute_weights() if number < 8 else predict_over_http()

    try:
        with ThreadPoolExecutor(28) as pool:
            predictions = list(pool.map(run_thread, range(28)))
    finally:
        app.close(verbose=False)
    for pair, scores in chain.from_iterable(predictions):
        assert scores == pytest.approx(expected[pair], abs=1e-5), pair


def test_client_programs_get_errors_in_one_line(address: str):
    status, response = post(f"{address}/gradio_api/run/predict", json.dumps({"data": ["A dog.", ""]}).encode())
    assert (status, response["error"]) == (500, "No hypothesis: type a sentence")


def test_upload_of_a_file_that_is_too_large_is_refused(address: str):
    start = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.csv"\r\n\r\n'
    body = start + b"a" * 5_300_000 + b"\r\n--x--\r\n"
    status, message = post(f"{address}/gradio_api/upload", body, "multipart/form-data; boundary=x")
    assert (status, message) == (413, "File size exceeded maximum allowed size of 5242880 bytes.")


@pytest.fixture
def used_port() -> Iterator[int]:
    """A port at which another server listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_mistake_in_serve_is_one_line(
    trained_classifier: Path,
    pretrained: Path,
    used_port: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for options, message in {
        (trained_classifier, "--port", used_port): f"--port {used_port}: is taken",
        (trained_classifier, "--port", 70000): "--port 70000: is taken or not permitted",
        (trained_classifier, "--host", "203.0.113.1"): "--host 203.0.113.1: not an address of this machine",
        (pretrained,): "a model without a trained classifier; fine-tune it first",
        ("./nowhere",): "no such folder",
        (pretrained, "--space", tmp_path / "space"): "fine-tune it first",
        (
            trained_classifier,
            "--space",
            tmp_path / "full",
        ): f"error: {tmp_path}/full: already holds files; give another folder",
    }.items():
        line = error_line(["serve", *options], capsys)
        assert message in line
        assert "--overwrite_output_dir" not in line
    assert not (tmp_path / "space").exists()


def test_missing_gradio_error_names_the_extra(
    trained_classifier: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    for name in [name for name in sys.modules if name.startswith("bert_snli.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "gradio is not installed; pip install 'bert-snli[serve]'" in error_line(
        ["serve", trained_classifier], capsys
    )


def test_default_port_is_a_free_one(predictor: ExplainedPredictor):
    first, second = (start(predictor, "127.0.0.1", None) for _ in range(2))
    try:
        assert second.server_port > first.server_port >= 7860
        assert predict_neutral_pair(second.local_url.rstrip("/")) == "neutral"
    finally:
        first.close(verbose=False)
        second.close(verbose=False)


def test_serve_runs_until_ctrl_c(trained_classifier: Path, capsys: pytest.CaptureFixture):
    port = unused_port()
    labels = []
    out = io.StringIO()

    def request_and_interrupt() -> None:
        """Begin when the address is printed: the server responds before the command waits for Ctrl-C."""
        deadline = time.monotonic() + 60
        while "Serving" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
        with suppress(OSError):
            labels.append(predict_neutral_pair(f"http://127.0.0.1:{port}"))
        os.kill(os.getpid(), signal.SIGINT)

    client = threading.Thread(target=request_and_interrupt)
    client.start()
    with redirect_stdout(out):
        assert main(["serve", str(trained_classifier), "--port", str(port)]) == 0
    client.join()
    assert labels == ["neutral"]
    expected = f"Serving {trained_classifier} at http://127.0.0.1:{port}/ (Ctrl-C stops it)\nStopped.\n"
    assert out.getvalue() == expected
    assert "Traceback" not in capsys.readouterr().err
    socket.create_server(("127.0.0.1", port)).close()  # the port is free again


@pytest.mark.slow
def test_space_runs_with_the_code_that_it_holds(trained_classifier: Path, tmp_path: Path):
    space = tmp_path / "space"
    assert main(["serve", str(trained_classifier), "--space", str(space)]) == 0
    assert {path.name for path in space.iterdir()} == {
        "README.md", "app.py", "bert_snli", "models", "requirements.txt",
    }  # fmt: skip
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (space / "models" / "trained_classifier").iterdir()
    }
    assert all(
        any(path.match(pattern) for pattern in MODEL_FILES)
        for path in (space / "models" / "trained_classifier").iterdir()
    )
    front_matter = dict(
        line.split(": ", 1) for line in (space / "README.md").read_text().split("---\n")[1].splitlines()
    )
    assert (front_matter["sdk"], front_matter["app_file"]) == ("gradio", "app.py")
    assert f"gradio=={front_matter['sdk_version']}\n" in (space / "requirements.txt").read_text()

    port = unused_port()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["GRADIO_SERVER_PORT"] = str(port)
    code = "import bert_snli; print(bert_snli.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=space, env=environment, capture_output=True, text=True)
    assert Path(found.stdout.strip()) == space / "bert_snli" / "__init__.py"  # not the installed package
    with subprocess.Popen(
        [sys.executable, "-u", "app.py"], cwd=space, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert "Serving" in process.stdout.readline()
            assert predict_neutral_pair(f"http://127.0.0.1:{port}") == "neutral"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30)[0] == "Stopped.\n"
            assert process.returncode == 0
        finally:
            process.kill()


def test_requirements_of_a_space_are_those_of_the_extra():
    project = pytest.importorskip("tomllib").loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    listed = [Requirement(line) for line in list_requirements().splitlines()]
    assert sorted(Requirement(line).name for line in required) == sorted(line.name for line in listed)
    assert all(version(line.name).split("+")[0] in line.specifier for line in listed)
