"""A Hub in memory, over HTTP, with the endpoints that `huggingface_hub` calls when it pushes and loads models."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

LARGE = (".safetensors", ".png", ".onnx")
KNOWN_TOKEN = "hf_known"


@dataclass
class Commit:
    """A commit: its title, and all files of the repository after it."""

    title: str
    files: dict[str, bytes]

    @property
    def sha(self) -> str:
        content = json.dumps([self.title, {path: hashlib.sha1(data).hexdigest() for path, data in self.files.items()}])
        return hashlib.sha1(content.encode()).hexdigest()


@dataclass
class Repository:
    """A repository: the commits of each branch, of which the first is empty."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [Commit("initial commit", {})]})

    def at(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next(
            (commit for commits in self.branches.values() for commit in commits if commit.sha == revision), None
        )


class Hub:
    """The state of the server.

    `faults` maps the beginning of a call ("PUT /lfs/") to the HTTP status that the server returns for it, or to
    "drop": the server then closes the connection in the middle of the request.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.faults: dict[str, int | str] = {}
        self.endpoint = ""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a Hub at `hub.endpoint` until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def hub_client(endpoint: str | None, home: Path, token: str | None = KNOWN_TOKEN) -> Iterator[None]:
    """Let `huggingface_hub` of this process use the Hub at `endpoint` (None: offline) until the block ends.

    The cache is in `home`. The client waits seconds between its attempts; here it does not wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", endpoint or "https://huggingface.co")
        url_template = f"{constants.ENDPOINT}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url_template)
        patch.setattr(constants, "HF_HUB_OFFLINE", endpoint is None)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # newer versions keep the first endpoint
        patch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
        if token is None:
            for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
                patch.delenv(name, raising=False)
        else:
            patch.setenv("HF_TOKEN", token)
        yield


def git_oid(path: str, data: bytes) -> str:
    """Return the id of a file's content: SHA-256 for a large file, the SHA-1 of git for others."""
    if path.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Handles one request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        path = urlsplit(self.path).path
        self.hub.calls.append(f"{self.command} {unquote(path)}")
        for call, fault in self.hub.faults.items():
            if self.hub.calls[-1].startswith(call):
                if fault == "drop":
                    self.rfile.read(int(self.headers.get("Content-Length") or 64) // 2)
                    self.close_connection = True
                    self.connection.close()
                    return
                self._body()
                return self._error(int(fault), "Nothing")
        body = self._body()
        if path == "/api/whoami-v2":
            known = self._has_known_token()
            return self._json({"name": "user", "type": "user"}) if known else self._error(401, "BadToken")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            wrong = [{"message": '"license" must be one of ...'}] if b"nonsense" in body else []
            return self._json({"errors": wrong, "warnings": []}, status=400 if wrong else 200)
        if path.startswith("/lfs/"):
            self.hub.uploads[path.removeprefix("/lfs/")] = body
            return self._json({})
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if "datasets" in parts[:2]:  # there are none
            return self._error(404, "RepoNotFound")
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:], body)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._lfs(json.loads(body))
        if parts[2:3] == ["resolve"]:
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        self._error(404, "Unknown")

    def _create(self, request: dict) -> None:
        repo_id = f"{request['organization']}/{request['name']}"
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repositories:
            return self._json({"url": url}, status=409)
        self.hub.repositories[repo_id] = Repository(
            private=request.get("visibility") == "private" or "private" in request
        )
        self._json({"url": url})

    def _has_known_token(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {KNOWN_TOKEN}"

    def _find(self, repo_id: str) -> Repository | None:
        """Return a repository that the client may see."""
        repository = self.hub.repositories.get(repo_id)
        return None if repository and repository.private and not self._has_known_token() else repository

    def _api(self, repo_id: str, rest: list[str], body: bytes) -> None:
        repository = self._find(repo_id)
        if repository is None:
            return self._error(404, "RepoNotFound")
        what, revision = (rest + ["revision", "main"][len(rest) :])[:2]
        if what == "branch":
            if revision in repository.branches:
                return self._error(409, "Exists")
            repository.branches[revision] = list(repository.branches["main"])
            return self._json({})
        commit = repository.at(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound")
        if what == "revision":
            siblings = [{"rfilename": path} for path in commit.files]
            info = {"id": repo_id, "sha": commit.sha, "private": repository.private, "siblings": siblings, "tags": []}
            return self._json({**info, "config": json.loads(commit.files.get("config.json", b"null"))})
        if what == "tree":
            return self._json(
                [
                    {"type": "file", "path": path, "size": len(data), "oid": git_oid(path, data)}
                    for path, data in commit.files.items()
                ]
            )
        if what == "preupload":
            return self._json(
                {"files": [self._upload_mode(commit, entry["path"]) for entry in json.loads(body)["files"]]}
            )
        if what == "commit":
            return self._commit(
                repo_id, repository.branches[revision], [json.loads(line) for line in body.splitlines()]
            )
        self._error(404, "Unknown")

    def _upload_mode(self, commit: Commit, path: str) -> dict:
        oid = git_oid(path, commit.files[path]) if path in commit.files else None
        mode = "lfs" if path.endswith(LARGE) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _lfs(self, request: dict) -> None:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{entry['oid']}"}}}
            for entry in request["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo_id: str, branch: list[Commit], lines: list[dict]) -> None:
        files = dict(branch[-1].files)
        title = ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        branch.append(Commit(title, files))
        sha = branch[-1].sha
        self._json({"commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{sha}", "commitOid": sha})

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        repository = self._find(repo_id)
        commit = repository.at(revision) if repository else None
        if commit is None:
            return self._error(404, "RevisionNotFound" if repository else "RepoNotFound")
        if path not in commit.files:
            return self._error(404, "EntryNotFound", {"X-Repo-Commit": commit.sha})
        data = commit.files[path]
        self._send(200, data, {"ETag": f'"{git_oid(path, data)}"', "X-Repo-Commit": commit.sha})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, b'{"error": "no"}', {"X-Error-Code": code, **(headers or {})})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
