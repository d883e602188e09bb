"""A server that speaks as much of OpenAI's and Gemini's image APIs as a client needs."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


def png(colour: str = "red", size: tuple[int, int] = (16, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Asked:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


@dataclass
class FakeUpstream:
    """Answers in order; the last one for ever."""

    answers: list[tuple[int, Any]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    port: int = 0
    together: threading.Barrier | None = None
    """Requests that must be there at once before any is answered."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def answer(self, asked: Asked) -> tuple[int, bytes]:
        self.asked.append(asked)
        status, value = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return status, value if isinstance(value, bytes) else json.dumps(value).encode()


def openai_answer(picture: bytes) -> dict[str, Any]:
    return {"created": 1, "data": [{"b64_json": base64.b64encode(picture).decode()}]}


def gemini_answer(picture: bytes) -> dict[str, Any]:
    data = {"mimeType": "image/png", "data": base64.b64encode(picture).decode()}
    parts = [{"text": "Here it is."}, {"inlineData": data}]
    return {"candidates": [{"content": {"role": "model", "parts": parts}}]}


@contextmanager
def upstream(*answers: tuple[int, Any]) -> Iterator[FakeUpstream]:
    """A server on a free port of the loopback interface; ended with the block."""
    fake = FakeUpstream(list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            if fake.together is not None:
                fake.together.wait(20)
            status, data = fake.answer(Asked(self.path, headers, body))
            self.send_response(status)
            for name, value in {**fake.headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
