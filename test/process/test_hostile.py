"""What strangers send to harm: each is refused, at little cost, by a real server.

The cost is what the entrypoint itself spent: seconds of its CPUs, and its peak of memory.
"""

from __future__ import annotations

import io
import json
import select
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from PIL import Image

from fakes.server import Server

MIB = 2**20
MAX_GROWTH = 50 * MIB
MAX_CPU_S = 1.0
EDITS, GENERATIONS = "/v1/images/edits", "/v1/images/generations"
BOUNDARY = "safelight-boundary"


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(width: int, height: int, data: bytes = b"", extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def zeros(nbytes: int) -> bytes:
    """They compressed, a thousandth of that; made piece by piece."""
    compressor = zlib.compressobj(9)
    made = b"".join(compressor.compress(bytes(MIB)) for _ in range(nbytes // MIB))
    return made + compressor.flush()


def saved(format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, format, **options)
    return buffer.getvalue()


def frames(format: str, count: int) -> bytes:
    """An animation that goes on and on: its one frame repeated."""
    two = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    two[0].save(buffer, format, save_all=True, append_images=two[1:])
    data = buffer.getvalue()
    if format == "GIF":
        at = data.rindex(b"\x21\xf9")
        return data[:at] + data[at:-1] * count + b";"
    at = data.rindex(b"ANMF")
    body = data[:at] + data[at:] * count
    return body[:4] + struct.pack("<I", len(body) - 8) + body[8:]


def webp_canvas(side: int) -> bytes:
    """An animation that says it is so large."""
    data = bytearray(frames("WEBP", 1))
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (side - 1).to_bytes(3, "little") * 2
    return bytes(data)


PICTURES: dict[str, Callable[[], bytes]] = {
    "a header of 50,000 x 50,000 pixels": lambda: png(50_000, 50_000),
    "10 KiB that are 9,000 x 9,000 pixels": lambda: png(9_000, 9_000, zeros(10 * MIB)),
    "text of a gigabyte": lambda: png(8, 8, extra=chunk(b"zTXt", b"a\0\0" + zeros(1024 * MIB))),
    "profile of a gigabyte": lambda: png(8, 8, extra=chunk(b"iCCP", b"a\0\0" + zeros(1024 * MIB))),
    "an SVG": lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9e9' height='9e9'/>",
    "XML that grows": lambda: (
        b"<!DOCTYPE a [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><svg>&b;</svg>"
    ),
    "a script behind a PNG": lambda: saved("PNG") + b"<script>alert(1)</script>",
    "an archive behind a JPEG": lambda: saved("JPEG") + b"PK\x05\x06" + bytes(18),
    "a truncated JPEG": lambda: saved("JPEG")[:-500],
    "a JPEG of 10,000 scans": lambda: _scans(10_000),
    "a GIF of 100,000 frames": lambda: frames("GIF", 100_000),
    "a WebP of 100,000 frames": lambda: frames("WEBP", 100_000),
    "a WebP that ends early": lambda: frames("WEBP", 100)[:-20],
    "a WebP canvas of 16,384 x 16,384": lambda: webp_canvas(16_384),
    "a program": lambda: b"\x7fELF" + bytes(1000),
    "nothing": lambda: b"",
}


def _scans(count: int) -> bytes:
    data = saved("JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * count + data[-2:]


@pytest.fixture
def entrypoint(live_server: Server) -> psutil.Process:
    return live_server.children()["safelight.entrypoint"]


@contextmanager
def cheap(process: psutil.Process, growth: int = MAX_GROWTH) -> Iterator[None]:
    """Fails if the process spends more than is its due."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # its peak is what it has now
    before, cpu = process.memory_info().rss, sum(process.cpu_times()[:2])
    yield
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    assert (peak - before) / MIB < growth / MIB
    assert sum(process.cpu_times()[:2]) - cpu < MAX_CPU_S


def refused(answer: httpx2.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text[:1000]
    failure: dict[str, Any] = answer.json()["error"]
    assert "PIL" not in failure["message"] and "Error" not in failure["message"]
    return failure


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(live_server: Server, entrypoint: psutil.Process, name: str) -> None:
    files = {"image": ("a.png", PICTURES[name]())}
    with cheap(entrypoint):
        answer = live_server.client.post(EDITS, data={"prompt": "x"}, files=files)
    assert refused(answer)["param"] == "image"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 10**9}, "n"),
        ({"n": 10**400}, "n"),
        ({"n": -1}, "n"),
        ({"size": "100000x100000"}, "size"),
        ({"size": "9" * 10**6 + "x64"}, "size"),
        ({"width": 10**9}, "width"),
        ({"num_inference_steps": 10**9}, "num_inference_steps"),
        ({"seed": list(range(90_000))}, "seed"),
        ({"prompt": "x" * MIB}, "prompt"),
        ({"images": ["x"] * 90_000}, "images"),
        ({"images": ["http://127.0.0.1/x.png"] * 32}, "images"),
        ({"partial_images": 10**9}, "partial_images"),
    ],
)
def test_numbers(
    live_server: Server, entrypoint: psutil.Process, fields: dict[str, Any], param: str
) -> None:
    # Python itself writes no integers of so many digits in decimal.
    text = json.dumps({"prompt": "x", **{k: v for k, v in fields.items() if v != 10**400}})
    if 10**400 in fields.values():
        text = text[:-1] + ', "n": 1' + "0" * 400 + "}"
    with cheap(entrypoint):
        answer = live_server.client.post(
            GENERATIONS, content=text, headers={"content-type": "application/json"}
        )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in (param, None)


JSON = {"content-type": "application/json"}
BODIES: dict[str, Callable[[], bytes]] = {
    "lists in lists": lambda: b"[" * (60 * MIB),
    "objects in objects": lambda: b'{"a":' * (10 * MIB),
    "lists in a list": lambda: b'{"a":[' + b"[]," * (20 * MIB) + b"[]]}",
    "a million names": lambda: json.dumps({str(i): i for i in range(10**6)}).encode(),
    "an endless number": lambda: b'{"n": ' + b"9" * (40 * MIB) + b"}",
    "text that is not text": lambda: b'{"prompt": "' + b"\xff" * (40 * MIB) + b'"}',
    "nothing but spaces": lambda: b" " * (60 * MIB) + b"x",
}


@pytest.mark.parametrize("name", BODIES)
def test_json(live_server: Server, entrypoint: psutil.Process, name: str) -> None:
    """It is read as a whole, and so takes its own size for a moment; nothing of that stays, and
    what it stands for is never made."""
    data = BODIES[name]()
    before = entrypoint.memory_info().rss
    with cheap(entrypoint, growth=len(data) + MAX_GROWTH):
        answer = live_server.client.post(GENERATIONS, content=data, headers=JSON)
    assert refused(answer)["code"] == "invalid_json"
    live_server.client.get("/health")  # on the same connection: the request before is over
    assert entrypoint.memory_info().rss - before < MAX_GROWTH


def test_a_picture_of_64_mib_of_text(live_server: Server, entrypoint: psutil.Process) -> None:
    data = b'{"prompt": "x", "image": "' + b"A" * (60 * MIB) + b'"}'
    before = entrypoint.memory_info().rss
    with cheap(entrypoint, growth=4 * len(data)):
        answer = live_server.client.post(EDITS, content=data, headers=JSON)
    assert refused(answer)["param"] == "image"
    live_server.client.get("/health")
    assert entrypoint.memory_info().rss - before < MAX_GROWTH


# --------------------------------------------------------------------------- bodies without an end

GIB = 2**30
PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
TEXT = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'


def sent(server: Server, head: dict[str, str], begin: bytes, chunked: bool) -> tuple[bytes, int]:
    """The answer to a body of 2 GiB, and how much of it was taken before it came."""
    lines = [f"POST {EDITS} HTTP/1.1", "host: x", *(f"{k}: {v}" for k, v in head.items())]
    piece = begin + bytes(MIB - len(begin))
    taken = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        reply = connection.dup()
        try:
            while taken < 2 * GIB and not select.select([reply], [], [], 0)[0]:
                connection.sendall(b"%x\r\n%s\r\n" % (MIB, piece) if chunked else piece)
                taken += MIB
                piece = bytes(MIB)
        except ConnectionError:
            pass  # it has said enough
        with reply:
            return reply.recv(4096), taken


@pytest.mark.parametrize(
    ("kind", "begin"),
    [
        ("multipart/form-data; boundary=x", PART),
        ("multipart/form-data; boundary=x", TEXT),
        ("multipart/form-data; boundary=x", b""),
        ("application/x-www-form-urlencoded", b"image="),
        ("application/json", b'{"image": "'),
        ("text/plain", b""),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_two_gigabytes(
    live_server: Server, entrypoint: psutil.Process, kind: str, begin: bytes, chunked: bool
) -> None:
    length = {"transfer-encoding": "chunked"} if chunked else {"content-length": str(2 * GIB)}
    with cheap(entrypoint):
        answer, taken = sent(live_server, {"content-type": kind, **length}, begin, chunked)
    status = answer.split()[1]
    assert status in (b"413", b"415", b"400")
    # Of a declared length only what is under way anyhow; else what fits.
    assert taken < (200 * MIB if chunked else 16 * MIB)
    assert live_server.client.get("/health").status_code == 200
