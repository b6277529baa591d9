"""A hub in miniature on 127.0.0.1: the routes that a download asks for, and what can go wrong with them."""

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_BYTES = 1000
"""Files of at least that size are in LFS."""


@dataclass
class Repo:
    """One repository: its commits' files by name, and how the hub behaves for it."""

    commit: str
    files: dict[str, bytes]
    branches: dict[str, str] = field(default_factory=dict)
    gated: str | bool = False
    refuse: int = 0
    """Status for those without the right token."""
    token: str = "let-me-in"
    card: dict[str, Any] = field(default_factory=dict)
    sends: dict[str, bytes] = field(default_factory=dict)
    """What is sent instead of a file's bytes."""
    gone: set[str] = field(default_factory=set)
    """Files that the list has and the hub lost."""
    says_commit: str | None = None
    """What X-Repo-Commit says, when that is another commit."""
    breaks_after: int | None = None
    """Bytes after which each connection breaks off."""
    drips: float = 0.0
    """Seconds before each byte."""
    slow_s: float = 0.0
    """Seconds before each 64 KiB."""
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """File and range of every request for a file."""

    def listing(self) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = []
        for name, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
            if len(data) >= LFS_BYTES:
                sha = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        card = {"cardData": self.card} if self.card else {}
        return {"id": "x/y", "sha": self.commit, "gated": self.gated, "siblings": siblings, "private": False, **card}


class _Handler(BaseHTTPRequestHandler):
    repos: dict[str, Repo]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._answer(send=True)

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def _answer(self, send: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        api = re.fullmatch(r"/api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)/revision/(.+)", path)
        file = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        repo = self.repos.get(found[1]) if found else None
        if found is None or repo is None:
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if repo.refuse and self.headers.get("Authorization") != f"Bearer {repo.token}" and (file or repo.refuse == 403):
            return self._refuse(repo.refuse, "GatedRepo", "Access to this model is restricted")
        if found[2] != repo.commit and repo.branches.get(found[2]) != repo.commit:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        if api:
            return self._send(json.dumps(repo.listing()).encode(), {"Content-Type": "application/json"}, send)
        assert file is not None
        return self._file(repo, file[3], send)

    def _file(self, repo: Repo, name: str, send: bool) -> None:
        span = self.headers.get("Range")
        repo.asked.append((name, span))
        if name not in repo.files or name in repo.gone:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        data = repo.sends.get(name, repo.files[name])
        etag = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": repo.says_commit or repo.commit, "Accept-Ranges": "bytes"}
        status = 200
        if span and repo.ranges:
            start, _, end = span.removeprefix("bytes=").partition("-")
            stop = min(len(data), int(end) + 1) if end else len(data)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            data, status = data[int(start) : stop], 206
        self._send(data, headers, send, status, repo)

    def _send(
        self, data: bytes, headers: dict[str, str], send: bool, status: int = 200, repo: Repo | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if not send:
            return
        if repo is not None and repo.drips:
            for i in range(len(data)):
                time.sleep(repo.drips)
                self.wfile.write(data[i : i + 1])
                self.wfile.flush()
        elif repo is not None and repo.breaks_after is not None and len(data) > repo.breaks_after:
            self.wfile.write(data[: repo.breaks_after])
            self.close_connection = True
        else:
            for start in range(0, len(data), 65536):
                time.sleep(repo.slow_s if repo else 0)
                self.wfile.write(data[start : start + 65536])

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        for key, value in {"X-Error-Code": code, "X-Error-Message": message, "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def serve(repos: dict[str, Repo]) -> Iterator[str]:
    """Run the hub; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"repos": repos}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
