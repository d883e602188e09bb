"""A hub of models on this machine: the endpoints that huggingface_hub asks, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_RESOLVE = re.compile(r"/(?P<model>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_API = re.compile(r"/api/models/(?P<model>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>.+))?")


@dataclass
class Hub:
    """The models it has, and what was asked of it."""

    models: dict[str, Path]
    url: str = ""
    gated: set[str] = field(default_factory=set)
    stops_after: int | None = None
    """Bytes of a large file after which the connection hangs, as long as it is set."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, Range)"""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set while a large file hangs."""

    def files(self, model: str) -> dict[str, Path]:
        root = self.models[model]
        return {str(p.relative_to(root)): p for p in sorted(root.rglob("*")) if p.is_file()}

    def asked(self, path: str, method: str = "GET") -> list[str]:
        """The Range of each request for this file."""
        return [r for m, p, r in self.requests if m == method and p.endswith(path)]


def is_large(path: Path) -> bool:
    return path.suffix == ".safetensors"


def etag(path: Path) -> str:
    kind = hashlib.sha256 if is_large(path) else hashlib.sha1
    return kind(path.read_bytes()).hexdigest()


@contextmanager
def serving(models: dict[str, Path]) -> Iterator[Hub]:
    hub = Hub(models)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path, self.headers.get("Range", "")))
            if found := _RESOLVE.fullmatch(path):
                self.file(found["model"], found["revision"], found["path"])
            elif found := _API.fullmatch(path):
                self.api(found["model"], found["what"], found["revision"])
            else:
                self.refuse(404, "")

        def known(self, model: str, revision: str | None) -> bool:
            if model not in hub.models:
                self.refuse(404, "RepoNotFound")
            elif revision not in (None, "main", COMMIT):
                self.refuse(404, "RevisionNotFound")
            else:
                return True
            return False

        def api(self, model: str, what: str | None, revision: str | None) -> None:
            if not self.known(model, revision):
                return
            files = hub.files(model)
            if what != "tree":
                siblings = [{"rfilename": name} for name in files]
                self.json({"id": model, "sha": COMMIT, "siblings": siblings, "tags": []})
                return
            entries = []
            for name, path in files.items():
                entry = {"type": "file", "path": name, "size": path.stat().st_size}
                entry["oid"] = hashlib.sha1(path.read_bytes()).hexdigest()
                if is_large(path):
                    entry["lfs"] = {"oid": etag(path), "size": entry["size"], "pointerSize": 130}
                entries.append(entry)
            self.json(entries)

        def file(self, model: str, revision: str, name: str) -> None:
            if not self.known(model, revision):
                return
            if model in hub.gated:
                self.refuse(403, "GatedRepo")
                return
            path = hub.files(model).get(name)
            if path is None:
                self.refuse(404, "EntryNotFound")
                return
            data = path.read_bytes()
            asked = self.headers.get("Range")
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{etag(path)}"')
            self.send_header("Accept-Ranges", "bytes")
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if self.command == "GET":
                self.send(data[start:], large=is_large(path))

        def send(self, data: bytes, *, large: bool) -> None:
            if large and hub.stops_after is not None and len(data) > hub.stops_after:
                self.wfile.write(data[: hub.stops_after])
                self.wfile.flush()
                hub.stopped.set()
                self.connection.recv(1)  # until the other side is gone
                self.close_connection = True
                return
            self.wfile.write(data)

        def json(self, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "no")
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
