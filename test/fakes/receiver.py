"""A receiver of webhooks: a real HTTP server that keeps what it gets."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "whsec_" + "c2FmZWxpZ2h0" * 3
"""Of 27 bytes."""

PATIENCE_S = 20  # a sender that sends nothing for so long has failed


@dataclass(frozen=True)
class Received:
    headers: dict[str, str]
    body: bytes
    path: str

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    url: str
    answers: list[int] = field(default_factory=list)
    """Statuses of the next answers; then 200."""
    got: queue.Queue[Received] = field(default_factory=queue.Queue)
    open: threading.Event = field(default_factory=threading.Event)
    """Whether it answers; what arrives meanwhile waits."""

    def next(self) -> Received:
        """What came next; waits for it."""
        try:
            return self.got.get(timeout=PATIENCE_S)
        except queue.Empty:
            raise AssertionError(f"nothing was sent within {PATIENCE_S} s") from None

    @property
    def silent(self) -> bool:
        return self.got.empty()


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port of the loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.got.put(Received(headers, body, self.path))
            found.open.wait(PATIENCE_S)
            status = found.answers.pop(0) if found.answers else 200
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("location", f"{found.url}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Receiver(f"http://127.0.0.1:{server.server_port}")
    found.open.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield found
    finally:
        found.open.set()
        server.shutdown()
        thread.join()
        server.server_close()
