"""Models and their files over HTTP on this machine, as the hub serves them."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LARGE = (".gguf", ".safetensors")
"""How files end that are kept beside git, under their SHA-256."""


@dataclass
class Repository:
    """Files by path, and what goes wrong with them."""

    files: dict[str, bytes]
    gated: bool = False
    ignores_ranges: bool = False
    breaks_after: int | None = None
    """Bytes of a body after which the connection ends, counted down by what is sent."""
    times_to_break: int = 0
    wrong_content: bool = False
    listed_nbytes: dict[str, int] = field(default_factory=dict)
    """Sizes that are listed instead of the true ones."""
    status: int | None = None
    """Every answer has it."""
    commit: str = COMMIT
    answer: bytes | None = None
    """What is said of the repository, instead of the truth."""
    wrong_place: bool = False
    """Ranges begin at another byte than asked for."""

    def sha256(self, path: str) -> str:
        return hashlib.sha256(self.files[path]).hexdigest()

    def blob_id(self, path: str) -> str:
        content = self.files[path]
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def etag(self, path: str) -> str:
        return self.sha256(path) if path.endswith(_LARGE) else self.blob_id(path)


class HubServer:
    """Listens on a free port; `requests` notes what was asked: method, path, range."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.sent_nbytes = 0
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def bodies(self) -> list[str]:
        """Return the paths of files that were asked for with their content."""
        return [
            path for method, path, _ in self.requests if method == "GET" and "/resolve/" in path
        ]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        wanted = self.headers.get("Range")
        self.hub.requests.append((self.command, self.path, wanted))
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            self._info("/".join(parts[2:4]))
        elif len(parts) >= 5 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), "/".join(parts[4:]), wanted, with_body)
        else:
            self._error(404, "EntryNotFound")

    def _repository(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._error(401, "RepoNotFound")
        elif repository.status:
            self._error(repository.status, None)
        elif repository.gated:
            self._error(403, "GatedRepo")
        else:
            return repository
        return None

    def _info(self, name: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        if repository.answer is not None:
            self._body(repository.answer)
            return
        siblings = [
            {
                "rfilename": path,
                "size": repository.listed_nbytes.get(path, len(content)),
                "blobId": repository.blob_id(path),
                **self._lfs(repository, path),
            }
            for path, content in repository.files.items()
        ]
        info = {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings}
        self._body(json.dumps({**info, "tags": []}).encode())

    def _lfs(self, repository: Repository, path: str) -> dict[str, Any]:
        if not path.endswith(_LARGE):
            return {}
        size = repository.listed_nbytes.get(path, len(repository.files[path]))
        return {"lfs": {"sha256": repository.sha256(path), "size": size, "pointerSize": 130}}

    def _file(self, name: str, path: str, wanted: str | None, with_body: bool) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        if path not in repository.files:
            self._error(404, "EntryNotFound")
            return
        content = repository.files[path]
        start, end, status = 0, len(content), 200
        if wanted and not repository.ignores_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(len(content), int(last or len(content)) + 1), 206
        body = bytes(len(content)) if repository.wrong_content else content
        self.send_response(status)
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", f'"{repository.etag(path)}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            place = start + 1 if repository.wrong_place else start
            self.send_header("Content-Range", f"bytes {place}-{end - 1}/{len(content)}")
        self.end_headers()
        if with_body:
            self._send(repository, body[start:end])

    def _send(self, repository: Repository, body: bytes) -> None:
        if repository.times_to_break > 0 and repository.breaks_after is not None:
            repository.times_to_break -= 1
            body = body[: repository.breaks_after]
            self.close_connection = True
        self.hub.sent_nbytes += len(body)
        self.wfile.write(body)

    def _body(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "as was wished")
        self.send_header("Content-Length", "0")
        self.end_headers()
