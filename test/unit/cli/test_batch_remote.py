"""`safelight batch --server` against a real HTTP server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from PIL import Image

from fakes.engine_peer import CARD
from fakes.stack import Stack, running
from safelight.cli import app
from safelight.cli.batch import command, remote
from safelight.cli.batch.lines import Item, read
from safelight.cli.batch.remote import RemoteServer

KEY = "hush"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    tasks = (*CARD.tasks, "image-to-image")
    card = msgspec.structs.replace(CARD, tasks=tasks, max_images=2)
    with running(tmp_path_factory.mktemp("data"), card=card, api_key=KEY) as stack:
        yield stack


Batch = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def batch(stack: Stack, tmp_path: Path) -> Batch:
    """Runs lines against the server; the exit status and the results."""

    def run(*rows: object, url: str = stack.base_url, flags: tuple[str, ...] = ()) -> Any:
        source = tmp_path / "in.jsonl"
        source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        to = tmp_path / "out"
        words = ["batch", "--input", str(source), "--output-path", str(to), "--server", url]
        status = app.run([*words, "--api-key", KEY, *flags])
        results = to / "results.jsonl"
        text = results.read_text() if results.exists() else ""
        return status, sorted(map(json.loads, text.splitlines()), key=lambda row: row["line"])

    return run


def test_pictures_and_videos_become_files(batch: Batch, stack: Stack, tmp_path: Path) -> None:
    status, rows = batch(
        {"id": "still", "prompt": "a", "num_frames": 1, "n": 2, "seed": 5, "size": "96x64"},
        {"id": "clip", "prompt": "b", "seed": 6, "num_frames": 5},
        {"id": "webp", "prompt": "c", "output_format": "webp", "output_quality": "low"},
        {"custom_id": "o", "method": "POST", "url": "/v1/videos", "body": {"prompt": "d"}},
        flags=("--num-inference-steps", "3"),
    )
    assert status == 0
    assert [row["status"] for row in rows] == ["completed"] * 4
    files = [[file["path"] for file in row["files"]] for row in rows]
    assert files == [["still--1.png", "still--2.png"], ["clip.mp4"], ["webp.webp"], ["o.mp4"]]
    assert [file["seed"] for file in rows[0]["files"]] == [5, 6]
    with Image.open(tmp_path / "out" / "still--1.png") as picture:
        assert picture.size == (96, 64)
    assert b"ftyp" in (tmp_path / "out" / "clip.mp4").read_bytes()[:12]
    steps = {spec.sampling.num_inference_steps for spec in stack.peer.specs[-5:]}
    assert steps == {3}
    [webp] = (spec for spec in stack.peer.specs[-5:] if spec.delivery.format == "webp")
    assert webp.delivery.compression == 35


def test_input_pictures_are_uploaded(batch: Batch, stack: Stack, tmp_path: Path) -> None:
    for name in ("x.png", "y.png"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    status, rows = batch(
        {"id": "one", "prompt": "a", "image": "x.png", "output": "image"},
        {"id": "two", "prompt": "b", "image": ["x.png", "y.png"], "output": "image", "seed": 3},
    )
    assert (status, [row["status"] for row in rows]) == (0, ["completed"] * 2)
    assert sorted(len(spec.inputs.images) for spec in stack.peer.specs[-2:]) == [1, 2]


def test_a_picture_that_cannot_be_read_stops_everything(
    batch: Batch, stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(stack.peer.specs)
    status, rows = batch({"prompt": "a"}, {"prompt": "b", "image": "none.png"})
    assert (status, rows) == (2, [])
    assert "line 2: The image" in capsys.readouterr().err
    assert len(stack.peer.specs) == before


def test_a_line_that_fails_fails_alone_and_is_tried_again(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, rows = batch({"id": "x", "prompt": "a", "width": 65}, {"id": "y", "prompt": "b"})
    assert status == 1
    assert [row["status"] for row in rows] == ["failed", "completed"]
    assert "'width' is 65" in rows[0]["error"]["message"]
    out, errors = capsys.readouterr()
    assert "safelight: line 1 (x): 400: 'width' is 65" in errors
    assert "1 made, 1 failed, 0 done before, 0 left" in out
    status, rows = batch(
        {"id": "x", "prompt": "a", "width": 64}, {"id": "y", "prompt": "b"}, flags=("--resume",)
    )
    assert status == 0
    assert [(row["id"], row["status"]) for row in rows] == [
        ("x", "failed"),
        ("x", "completed"),
        ("y", "completed"),
    ]
    assert "1 made, 0 failed, 1 done before, 0 left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("url", "message"),
    [("http://127.0.0.1:1", "cannot be reached"), ("no url", "cannot be reached")],
)
def test_a_server_that_is_not_there(
    batch: Batch, url: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch({"prompt": "a"}, url=url) == (2, [])
    assert message in capsys.readouterr().err


def test_a_wrong_key_is_an_error(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch({"prompt": "a"}, flags=("--api-key", "other")) == (2, [])
    assert "answers 401" in capsys.readouterr().err


class Busy(BaseHTTPRequestHandler):
    """Another server, which says so twice before it makes a picture and gives its address."""

    asked = 0

    def do_GET(self) -> None:
        listed = self.path == "/v1/models"
        self._answer(200, b'{"data": [{"id": "m"}]}' if listed else b"\x89PNG of its own")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        type(self).asked += 1
        if type(self).asked < 3:
            self._answer(429, b'{"error": {"message": "busy"}}', ("retry-after", "0"))
        else:
            self._answer(200, b'{"data": [{"url": "/made"}]}')

    def _answer(self, status: int, data: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("content-length", str(len(data)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/"
        server.shutdown()
        thread.join()


@pytest.fixture
def busy() -> Iterator[str]:
    Busy.asked = 0
    with serving(Busy) as url:
        yield url


def test_a_busy_server_is_asked_again(batch: Batch, busy: str, tmp_path: Path) -> None:
    status, rows = batch({"id": "a", "prompt": "a"}, url=busy)
    assert (status, rows[0]["status"], Busy.asked) == (0, "completed", 3)
    assert (tmp_path / "out" / "a.png").read_bytes() == b"\x89PNG of its own"


def test_a_server_that_stays_busy_is_given_up(batch: Batch, busy: str) -> None:
    status, rows = batch({"prompt": "a"}, url=busy, flags=("--retries", "1"))
    assert (status, rows[0]["error"]["message"], Busy.asked) == (1, "429: busy", 2)


# --------------------------------------------------------------------------- servers that misbehave

Answer = tuple[int, bytes, dict[str, str]] | None
PNG = b"\x89PNG of another"
JOB = b'{"id": "v1", "status": "%s", "num_frames": "9"}'
AT_ONCE = {"retry-after": "0"}


class Other(BaseHTTPRequestHandler):
    """Answers as it was told, each in turn and the last again and again; None hangs up."""

    told: ClassVar[dict[str, list[Answer]]] = {}
    seen: ClassVar[list[tuple[str, dict[str, str], bytes]]] = []
    asked: ClassVar[threading.Event] = threading.Event()

    def _any(self) -> None:
        line = f"{self.command} {self.path}"
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.seen.append((line, {k.lower(): v for k, v in self.headers.items()}, body))
        answers = self.told[line]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if line.startswith("GET /v1/videos"):
            self.asked.set()
        if answer is None:
            self.close_connection = True
            return
        status, data, headers = answer
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _any

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(command, "_PATIENCE", 0.0)
    monkeypatch.setattr(remote, "PATIENCE", 0)
    Other.seen.clear()
    Other.asked.clear()
    Other.told.clear()
    Other.told["GET /v1/models"] = [(200, b'{"data": [{"id": "m"}]}', {})]
    with serving(Other) as url:
        yield url


def told(line: str, *answers: Answer | bytes) -> None:
    Other.told[line] = [(200, a, {}) if isinstance(a, bytes) else a for a in answers]


def seen(line: str) -> list[tuple[str, dict[str, str], bytes]]:
    return [one for one in Other.seen if one[0] == line]


CLIP = {"id": "a", "prompt": "a", "output": "video"}
STILL = {"id": "a", "prompt": "a", "output": "image"}


@pytest.mark.parametrize(
    "trouble", [(503, b"", AT_ONCE), (429, b"", {"retry-after": "1" * 5000}), None]
)
def test_a_video_that_was_lost_sight_of_is_not_made_twice(
    batch: Batch, other: str, trouble: Answer, tmp_path: Path
) -> None:
    told("POST /v1/videos", JOB % b"queued")
    told("GET /v1/videos/v1", trouble, JOB % b"completed")
    told("GET /v1/videos/v1/content", trouble, b"clip")
    status, rows = batch(CLIP, url=other)
    assert (status, len(seen("POST /v1/videos"))) == (0, 1)
    assert (tmp_path / "out" / "a.mp4").read_bytes() == b"clip"
    assert rows[0]["files"] == [{"path": "a.mp4", "num_frames": 9}]


def test_a_video_that_the_server_forgot_is_made_again(batch: Batch, other: str) -> None:
    told("POST /v1/videos", JOB % b"queued")
    told("GET /v1/videos/v1", (404, b"", {}), JOB % b"completed")
    told("GET /v1/videos/v1/content", b"clip")
    assert batch(CLIP, url=other)[0] == 0
    assert len(seen("POST /v1/videos")) == 2


def test_the_key_goes_to_the_server_alone(batch: Batch, other: str) -> None:
    class Store(Other):
        seen: ClassVar[list[Any]] = []
        told: ClassVar[dict[str, list[Answer]]] = {
            "GET /v1/a.png": [(302, b"", {"location": "/v1/b.png"})],
            "GET /v1/b.png": [(200, PNG, {})],
        }

    with serving(Store) as elsewhere:
        told("POST /v1/images/generations", b'{"data": [{"url": "%sa.png"}]}' % elsewhere.encode())
        assert batch(STILL, url=other)[0] == 0
    assert len(Store.seen) == 2
    assert not any("authorization" in headers for _, headers, _ in Store.seen)
    [(_, headers, _)] = seen("POST /v1/images/generations")
    assert headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"[]", b"\xff", b'{"data": null}', b'{"data": [{}]}', b'{"data": [1]}'),
        *(b'{"data": [{"b64_json": "%%%"}]}', b'{"data": [{"url": "x://y"}]}'),
        b'{"data": [{"b64_json": "AAAA"}]}',
        (400, b'{"error": {"message": "no", "code": 7}}', {}),
        (400, b'{"error": "no"}', {}),
    ],
)
def test_an_answer_that_makes_no_sense_fails_its_line_alone(
    batch: Batch, other: str, answer: Answer | bytes
) -> None:
    good = b'{"data": [{"b64_json": "iVBORw0KGgo="}], "seeds": [1, 2]}'
    told("POST /v1/images/generations", answer, good)
    flags = ("--in-flight", "1")
    status, rows = batch(STILL, {**STILL, "id": "b"}, url=other, flags=flags)
    assert (status, [row["status"] for row in rows]) == (1, ["failed", "completed"])
    assert batch(STILL, url=other, flags=("--resume",))[0] == 0


def test_a_picture_in_the_line_has_no_name_of_its_own(batch: Batch, other: str) -> None:
    told("POST /v1/images/edits", b'{"data": [{"b64_json": "iVBORw0KGgo="}]}')
    assert batch({**STILL, "image": "data:image/png;base64,AAAA/BBBBBBB"}, url=other)[0] == 0
    [(_, _, body)] = seen("POST /v1/images/edits")
    assert b'filename="picture"' in body and b"BBBB" not in body


def test_interrupted_it_ends_though_the_server_is_gone(other: str, tmp_path: Path) -> None:
    told("POST /v1/videos", JOB % b"queued")
    told("GET /v1/videos/v1", (200, JOB % b"queued", {"openai-poll-after-ms": "3600000"}))
    told("DELETE /v1/videos/v1", None)

    async def run(item: Item) -> None:
        server = RemoteServer(other, KEY, tmp_path)
        await server.open([item])
        making = asyncio.ensure_future(server.make(item, tmp_path))
        await asyncio.to_thread(Other.asked.wait)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        await server.close()

    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(CLIP))
    asyncio.run(run(read(source, None, {})[0]))
    assert len(seen("DELETE /v1/videos/v1")) == 1
