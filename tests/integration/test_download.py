"""The book's archives by name, from a server on this machine that misbehaves as servers do."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from bert_snli.cli import main
from conversion import download
from conversion.d2l_layout import MXNET, PYTORCH


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` under any name, in the manner of `mood`; `ranges` says what it was asked for."""

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.mood, self.ranges = content, "good", []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        content, first = server.content, 0
        if server.mood == "not there":
            return self.send_error(404)
        if server.mood == "wrong bytes":
            content = bytes(len(content))
        if asked and server.mood != "no ranges":
            first = int(re.fullmatch(r"bytes=(\d+)-\d*", asked)[1])
            if first >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[first:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = len(body) // 2
        if server.mood in ("cuts off", "cuts off for good", "stalls") or server.mood == "no ranges" and not asked:
            self.wfile.write(body[:half])
            self.wfile.flush()
            if server.mood == "stalls":
                time.sleep(2.5)
            if server.mood in ("cuts off", "stalls"):
                server.mood = "good"
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(d2l_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A book archive of the tiny model on a local server, under the name of `bert.small`, and an empty cache."""
    with zipfile.ZipFile(tmp_path / "bert.zip", "w") as archive:
        for path in d2l_checkpoint.iterdir():
            archive.write(path, f"bert.small.torch/{path.name}")
    content = (tmp_path / "bert.zip").read_bytes()
    server = Server(content)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/bert.small.torch.zip"
    archive = download.Archive(url, hashlib.sha1(content).hexdigest())
    monkeypatch.setitem(download.ARCHIVES, ("bert.small", PYTORCH), archive)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # what is lost of a download that is cut off, at most
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    yield server
    server.shutdown()


def convert(tmp_path: Path) -> int:
    command = ["convert", "bert.small", "--num_attention_heads", "2", "--output_dir", str(tmp_path / "model")]
    return main([*command, "--overwrite_output_dir"])


@pytest.mark.parametrize("mood", ["good", "cuts off", "stalls", "no ranges"])
def test_it_arrives_whole_and_is_fetched_once(mood: str, server: Server, tmp_path: Path):
    server.mood = mood
    assert convert(tmp_path) == 0
    assert len(server.ranges) == (1 if mood == "good" else 2) and server.ranges[0] is None
    if mood != "good":  # what had come was not asked for again
        half = len(server.content) // 2
        assert half - 4096 <= int(re.fullmatch(r"bytes=(\d+)-", server.ranges[1])[1]) <= half
    assert main(["verify", str(tmp_path / "model"), "--against", str(tmp_path / "bert.zip")]) == 0
    assert convert(tmp_path) == 0
    assert len(server.ranges) == (1 if mood == "good" else 2)
    names = {path.name for path in (tmp_path / "bert-snli" / "downloads" / "d2l").iterdir()}
    assert "bert.small.torch.zip" in names and "bert.small.torch.zip.incomplete" not in names


def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path, capsys):
    server.mood = "cuts off for good"
    assert convert(tmp_path) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "run the command again to go on" in error and "http://127.0.0.1" in error
    partial = tmp_path / "bert-snli" / "downloads" / "d2l" / "bert.small.torch.zip.incomplete"
    there = partial.stat().st_size
    assert 4096 <= there < len(server.content)
    server.mood, server.ranges = "good", []
    assert convert(tmp_path) == 0
    assert server.ranges == [f"bytes={there}-"]


@pytest.mark.parametrize("beginning", ["another file's", "as long as the whole", "the whole"])
def test_whatever_lies_in_the_cache_the_right_file_comes_out(beginning: str, server: Server, tmp_path: Path):
    partial = tmp_path / "bert-snli" / "downloads" / "d2l" / "bert.small.torch.zip.incomplete"
    partial.parent.mkdir(parents=True)
    length = len(server.content)
    contents = {
        "another file's": bytes(length // 3),
        "as long as the whole": bytes(length),
        "the whole": server.content,
    }
    partial.write_bytes(contents[beginning])
    assert convert(tmp_path) == 0
    assert (partial.parent / "bert.small.torch.zip").read_bytes() == server.content
    assert (server.ranges == []) == (beginning == "the whole")


def test_a_damaged_file_in_the_cache_is_fetched_again(server: Server, tmp_path: Path):
    assert convert(tmp_path) == 0
    (tmp_path / "bert-snli" / "downloads" / "d2l" / "bert.small.torch.zip").write_bytes(b"damaged")
    assert convert(tmp_path) == 0
    assert server.ranges == [None, None]


@pytest.mark.parametrize(
    ("mood", "message"), [("wrong bytes", "SHA-1 [0-9a-f]{40}, the book's file has"), ("not there", "404")]
)
def test_what_is_not_the_books_file_is_refused(mood: str, message: str, server: Server, tmp_path: Path, capsys):
    server.mood = mood
    assert convert(tmp_path) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error
    assert not (tmp_path / "model").exists()
    assert convert(tmp_path) == 2  # nothing of it was kept
    assert server.ranges == [None, None]


def test_a_folder_that_holds_something_is_refused_before_the_download(server: Server, tmp_path: Path):
    assert main(["convert", "bert.small", "--output_dir", str(tmp_path)]) == 2
    assert server.ranges == []


def test_verify_knows_the_books_names(server: Server, tmp_path: Path):
    assert convert(tmp_path) == 0
    assert main(["verify", str(tmp_path / "model"), "--against", "bert.small"]) == 0
    assert len(server.ranges) == 1


def test_offline_says_so(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert convert(tmp_path) == 2
    error = capsys.readouterr().err
    assert "offline" in error.lower() and error.count("\n") == 1, error
    assert server.ranges == []


def test_all_four_archives_are_known():
    assert set(download.ARCHIVES) == {(name, kind) for name in ("bert.small", "bert.base") for kind in (PYTORCH, MXNET)}
    assert all(re.fullmatch("[0-9a-f]{40}", archive.sha1) for archive in download.ARCHIVES.values())


def test_a_folder_of_that_name_comes_first(d2l_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    d2l_checkpoint.rename(tmp_path / "bert.base")
    assert main(["convert", "bert.base", "--num_attention_heads", "2", "--output_dir", "model"]) == 0
