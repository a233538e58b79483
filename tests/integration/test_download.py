"""Download of d2l's checkpoints by name, from a local server with the faults of real servers."""

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
from conversion import convert_checkpoint, download
from conversion.d2l_layout import PYTORCH


class Server(http.server.ThreadingHTTPServer):
    """Serve `content` under any path, with the behaviour `mode`. `ranges` holds the `Range` header of each request."""

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.mode, self.ranges = content, "normal", []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, requested_range = self.server, self.headers.get("Range")
        server.ranges.append(requested_range)
        content, first = server.content, 0
        if server.mode == "not found":
            return self.send_error(404)
        if server.mode == "wrong bytes":
            content = bytes(len(content))
        if requested_range and server.mode != "ignores ranges":
            first = int(re.fullmatch(r"bytes=(\d+)-\d*", requested_range)[1])
            if first >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[first:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        truncates = server.mode in ("truncates once", "always truncates", "stalls")
        if truncates or (server.mode == "ignores ranges" and not requested_range):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if server.mode == "stalls":
                time.sleep(2.5)
            if server.mode in ("truncates once", "stalls"):
                server.mode = "normal"
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(d2l_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A local server with the archive of a small model. `bert.small` is downloaded from it, into an empty cache."""
    with zipfile.ZipFile(tmp_path / "bert.zip", "w") as archive:
        for path in d2l_checkpoint.iterdir():
            archive.write(path, f"bert.small.torch/{path.name}")
    content = (tmp_path / "bert.zip").read_bytes()
    server = Server(content)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    archive = ("bert.small.torch.zip", hashlib.sha1(content).hexdigest())
    monkeypatch.setitem(download.ARCHIVES, ("bert.small", PYTORCH), archive)
    monkeypatch.setattr(download, "BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # an interrupted download loses at most one chunk
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    yield server
    server.shutdown()


def convert_bert_small(tmp_path: Path) -> int:
    command = ["convert", "bert.small", "--num_attention_heads", "2", "--output_dir", str(tmp_path / "model")]
    return main([*command, "--overwrite_output_dir"])


@pytest.mark.parametrize("mode", ["normal", "truncates once", "stalls", "ignores ranges"])
def test_archive_is_downloaded_completely_and_only_once(mode: str, server: Server, tmp_path: Path):
    server.mode = mode
    assert convert_bert_small(tmp_path) == 0
    assert len(server.ranges) == (1 if mode == "normal" else 2) and server.ranges[0] is None
    if mode != "normal":  # the second request asks only for the missing bytes
        half = len(server.content) // 2
        assert half - 4096 <= int(re.fullmatch(r"bytes=(\d+)-", server.ranges[1])[1]) <= half
    assert convert_bert_small(tmp_path) == 0
    assert len(server.ranges) == (1 if mode == "normal" else 2)
    names = {path.name for path in (tmp_path / "bert-snli" / "downloads" / "d2l").iterdir()}
    assert "bert.small.torch.zip" in names and not any(name.endswith(".partial") for name in names)


def test_python_function_downloads_by_name(server: Server, tmp_path: Path):
    certificate = convert_checkpoint("bert.small", tmp_path / "model", num_attention_heads=2)
    assert certificate.source["framework"] == "pytorch" and len(server.ranges) == 1


def test_interrupted_download_is_reported_and_not_cached(server: Server, tmp_path: Path, capsys):
    server.mode = "always truncates"
    assert convert_bert_small(tmp_path) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "run the command again" in error and "http://127.0.0.1" in error
    assert list((tmp_path / "bert-snli" / "downloads" / "d2l").iterdir()) == []
    server.mode, server.ranges = "normal", []
    assert convert_bert_small(tmp_path) == 0
    assert server.ranges == [None]


def test_damaged_archive_in_cache_is_downloaded_again(server: Server, tmp_path: Path):
    assert convert_bert_small(tmp_path) == 0
    (tmp_path / "bert-snli" / "downloads" / "d2l" / "bert.small.torch.zip").write_bytes(b"damaged")
    assert convert_bert_small(tmp_path) == 0
    assert server.ranges == [None, None]


@pytest.mark.parametrize(("mode", "message"), [("wrong bytes", "SHA-1 [0-9a-f]{40}, "), ("not found", "404")])
def test_failed_or_wrong_download_is_rejected_and_not_cached(
    mode: str, message: str, server: Server, tmp_path: Path, capsys
):
    server.mode = mode
    assert convert_bert_small(tmp_path) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error
    assert not (tmp_path / "model").exists()
    assert convert_bert_small(tmp_path) == 2  # downloads again: nothing of the first try is cached
    assert server.ranges == [None, None]


def test_nonempty_output_folder_is_rejected_before_download(server: Server, tmp_path: Path):
    assert main(["convert", "bert.small", "--output_dir", str(tmp_path)]) == 2
    assert server.ranges == []


def test_offline_mode_is_reported_without_request(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert convert_bert_small(tmp_path) == 2
    error = capsys.readouterr().err
    assert "offline" in error.lower() and error.count("\n") == 1, error
    assert server.ranges == []


def test_urls_and_hashes_are_those_of_d2l():
    """Section 15.7.1 of d2l sets these values in `DATA_HUB`."""
    hashes = {
        "bert.base.torch.zip": "225d66f04cae318b841a13d32af3acc165f253ac",
        "bert.base.zip": "7b3820b35da691042e5d34c0971ac3edbd80d3f4",
        "bert.small.torch.zip": "c72329e68a732bef0452e4b96a1c341c8910f81f",
        "bert.small.zip": "a4e718a47137ccd1809c9107ab4f5edd317bae2c",
    }
    assert dict(download.ARCHIVES.values()) == hashes
    for (name, framework), (file_name, _) in download.ARCHIVES.items():
        assert file_name == (f"{name}.torch.zip" if framework == PYTORCH else f"{name}.zip")
    assert download.BASE_URL == "http://d2l-data.s3-accelerate.amazonaws.com"


def test_local_folder_has_priority_over_name_of_d2l_checkpoint(
    d2l_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    d2l_checkpoint.rename(tmp_path / "bert.base")
    assert main(["convert", "bert.base", "--num_attention_heads", "2", "--output_dir", "model"]) == 0
