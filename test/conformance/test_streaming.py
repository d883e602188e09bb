"""Streams of real jobs: the SDK sees images get sharper; who is cut off misses nothing."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from fakes.events import blocks
from fakes.server import Server, serving


def pixels(b64_json: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json)))).astype(np.float64)


def sharper(pictures: list[np.ndarray]) -> bool:
    """Whether each is nearer to the last than the one before it."""
    away = [float(np.abs(picture - pictures[-1]).mean()) for picture in pictures[:-1]]
    return away == sorted(away, reverse=True) and away[0] > 2 * away[-1] > 0


ASKED: dict[str, Any] = {
    "prompt": "a blue square on a white background",
    "stream": True,
    "partial_images": 3,
    "extra_body": {"seed": 5, "num_inference_steps": 12},
}


def test_partial_images_get_sharper(live_server: Server) -> None:
    with OpenAI(base_url=f"{live_server.base_url}/v1", api_key="any") as client:
        *partial, last = client.images.generate(**ASKED)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 3
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    assert last.type == "image_generation.completed"
    assert sharper([pixels(event.b64_json) for event in (*partial, last)])


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_partial_images_through_the_async_client(live_server: Server) -> None:
    async with AsyncOpenAI(base_url=f"{live_server.base_url}/v1", api_key="any") as client:
        stream = await client.images.generate(**ASKED)
        kinds = [event.type async for event in stream]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]


def test_previews_of_a_video_get_sharper(live_server: Server) -> None:
    name = live_server.create(previews=3, num_inference_steps=20, seed=3)
    with live_server.client.stream("GET", f"/v1/videos/{name}/events") as response:
        events = list(blocks(response))
    shown = [e["data"]["preview"] for e in events if e["event"] == "video.preview"]
    assert [one["step"] for one in shown] == [5, 10, 15]
    pictures = [pixels(one["b64_json"]) for one in shown]
    assert sharper(pictures)
    assert events[-1]["event"] == "video.completed"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "data") as server:
        yield server


def test_no_event_is_lost_when_the_connection_and_the_entrypoint_are(server: Server) -> None:
    """The connection is dropped by the client, then the process that serves it is killed; the
    same job is followed to its end by the numbers of its events."""
    name = server.create(num_inference_steps=250, previews=2)
    seen = take(server, name, None, 5)
    seen += take(server, name, seen[-1], 20)
    server.children()["safelight.entrypoint"].kill()
    seen += follow(server, name, seen[-1])
    numbers = [int(event["id"]) for event in seen]
    assert numbers == list(range(1, len(seen) + 1))
    assert seen[-1]["event"] == "video.completed"
    assert {event["data"]["attempt"] for event in seen} == {1, 2}
    again = list(blocks(server.client.get(f"/v1/videos/{name}/events")))
    assert again == seen


def take(server: Server, name: str, last: dict[str, Any] | None, count: int) -> list[Any]:
    """The next `count` events; then the connection is dropped."""
    headers = {"Last-Event-ID": last["id"]} if last else {}
    path = f"/v1/videos/{name}/events"
    with server.client.stream("GET", path, headers=headers) as response:
        events = blocks(response)
        return [next(events) for _ in range(count)]


def follow(server: Server, name: str, last: dict[str, Any]) -> list[Any]:
    """All events behind `last`, as EventSource does it: reconnecting until the end."""
    seen: list[Any] = []
    deadline = time.monotonic() + 120
    while not seen or seen[-1]["event"] not in ("video.completed", "video.failed"):
        assert time.monotonic() < deadline, server.log.read_text()
        after = (seen or [last])[-1]["id"]
        try:
            path = f"/v1/videos/{name}/events"
            with server.client.stream("GET", path, headers={"Last-Event-ID": after}) as response:
                for event in blocks(response):
                    seen.append(event)
        except httpx2.TransportError:
            time.sleep(0.1)
    return seen
