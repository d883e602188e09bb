"""Server-sent events: of jobs, and of images that are streamed."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Iterator

import httpx2
import pytest
from openai import APIError, OpenAI
from starlette.types import Message

from fakes.engine_peer import request
from fakes.events import blocks
from fakes.stack import Stack
from safelight.entrypoint import sse
from safelight.entrypoint.openai import streaming
from safelight.request import SampleSpec, State
from safelight.wire import messages as m

SCOPE = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}}


def submitted(stack: Stack) -> SampleSpec:
    (spec,) = stack.call(stack.peer.submitted())
    return spec


def test_events_of_a_video(manual: Stack, slow: httpx2.Client) -> None:
    video = slow.post("/v1/videos", json={"prompt": "a", "previews": 2}).json()["id"]
    spec = submitted(manual)
    assert spec.previews == 2
    with slow.stream("GET", f"/v1/videos/{video}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = blocks(response)
        first = next(events)
        assert first["event"] == first["data"]["type"] == "video.queued"
        assert (first["id"], first["data"]["sequence_number"]) == ("1", 1)
        manual.call(manual.peer.progress(spec, State.DENOISING, step=1, eta=7.0, position=2))
        moved = next(events)["data"]
        assert (moved["type"], moved["steps_done"], moved["steps_total"]) == (
            "video.progress",
            1,
            4,
        )
        assert moved["eta"] == pytest.approx(7, abs=1) and moved["queue_position"] == 2
        data = manual.call(manual.peer.preview(spec, 0, step=1))
        shown = next(events)["data"]
        assert shown["type"] == "video.preview"
        assert base64.b64decode(shown["preview"]["b64_json"]) == data
    served = slow.get(shown["preview"]["url"])
    assert (served.content, served.headers["content-type"]) == (data, "image/png")
    # The connection is gone; what happens meanwhile is sent to who comes back.
    manual.call(manual.peer.deliver(spec))
    manual.call(manual.manager.wait(video))
    for where in ({"headers": {"Last-Event-ID": "3"}}, {"params": {"after": 3}}):
        rest = list(blocks(slow.get(f"/v1/videos/{video}/events", **where)))
        assert [int(event["id"]) for event in rest] == list(range(4, 4 + len(rest)))
        assert rest[-1]["event"] == "video.completed"
    everything = list(blocks(slow.get(f"/v1/videos/{video}/events")))
    assert [int(e["id"]) for e in everything] == list(range(1, len(everything) + 1))


def test_who_has_seen_the_end_is_told_not_to_come_back(client: httpx2.Client) -> None:
    """Else an `EventSource` connects again for ever."""
    video = client.post("/v1/videos", json={"prompt": "a"}).json()["id"]
    *_, last = blocks(client.get(f"/v1/videos/{video}/events"))
    seen = {"Last-Event-ID": last["id"]}
    again = client.get(f"/v1/videos/{video}/events", headers=seen)
    assert (again.status_code, again.content) == (204, b"")
    before = {"Last-Event-ID": str(int(last["id"]) - 1)}
    assert list(blocks(client.get(f"/v1/videos/{video}/events", headers=before))) == [last]


def test_the_events_of_a_failed_job_say_why(manual: Stack, slow: httpx2.Client) -> None:
    video = slow.post("/v1/videos", json={"prompt": "a"}).json()["id"]
    manual.call(manual.peer.fail(submitted(manual), "oom", "No memory."))
    manual.call(manual.manager.wait(video))
    *_, last = blocks(slow.get(f"/v1/videos/{video}/events"))
    assert last["event"] == "video.failed"
    assert last["data"]["error"] == {"code": "oom", "message": "No memory."}


@pytest.mark.parametrize("path", ["events", "previews/0"])
def test_events_are_of_a_job_of_that_kind(client: httpx2.Client, path: str) -> None:
    video = client.post("/v1/videos", json={"prompt": "a"}).json()["id"]
    assert client.get(f"/v1/images/{video}/{path}").status_code == 404
    assert client.get(f"/v1/videos/nobody/{path}").status_code == 404
    if path != "events":
        assert client.get(f"/v1/videos/{video}/{path}").json()["error"]["param"] == "number"


def test_a_quiet_connection_is_kept_alive(
    manual: Stack, slow: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.05)
    video = slow.post("/v1/videos", json={"prompt": "a"}).json()["id"]
    with slow.stream("GET", f"/v1/videos/{video}/events") as response:
        assert next(line for line in response.iter_lines() if line.startswith(":")) == ": ping"
    slow.delete(f"/v1/videos/{video}")


# ------------------------------------------------------------------------------- streamed images


@pytest.fixture
def sdk(manual: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{manual.base_url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_partial_images_then_the_image(manual: Stack, sdk: OpenAI) -> None:
    stream = sdk.images.generate(prompt="a", stream=True, partial_images=2, size="64x64")
    spec = submitted(manual)
    assert spec.previews == 2
    for number in (0, 1):
        data = manual.call(manual.peer.preview(spec, number, step=number + 1))
        event = next(stream)
        assert event.type == "image_generation.partial_image"
        assert event.partial_image_index == number
        assert base64.b64decode(event.b64_json) == data
        assert (event.size, event.output_format) == ("64x64", "png")
    manual.call(manual.peer.deliver(spec))
    (last,) = stream
    assert last.type == "image_generation.completed"
    with open(spec.delivery.path, "rb") as file:
        assert base64.b64decode(last.b64_json) == file.read()


def test_several_images_each_have_their_end(manual: Stack, sdk: OpenAI) -> None:
    stream = sdk.images.generate(prompt="a", stream=True, n=2)
    for spec in manual.call(manual.peer.submitted()):
        manual.call(manual.peer.deliver(spec))
    events = list(stream)
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert [event.to_dict()["image_index"] for event in events] == [0, 1]


def test_a_failure_in_the_stream_is_raised_by_the_sdk(manual: Stack, sdk: OpenAI) -> None:
    stream = sdk.images.generate(prompt="a", stream=True)
    manual.call(manual.peer.fail(submitted(manual), "oom", "No memory."))
    with pytest.raises(APIError, match=r"No memory\.") as raised:
        list(stream)
    assert raised.value.code == "oom"


def test_a_wrong_request_is_no_stream(sdk: OpenAI) -> None:
    with pytest.raises(APIError) as raised:
        sdk.images.generate(prompt="a", stream=True, partial_images=99)
    assert raised.value.param == "partial_images"


def test_who_leaves_a_stream_cancels_its_job(manual: Stack, slow: httpx2.Client) -> None:
    body = {"prompt": "a", "stream": True, "partial_images": 1}
    with slow.stream("POST", "/v1/images/generations", json=body) as response:
        spec = submitted(manual)
        manual.call(manual.peer.preview(spec, 0, step=1))
        next(blocks(response))
    cancelled = manual.call(manual.peer.next(m.Cancel))
    assert cancelled.samples == (spec.id,)


def test_who_left_before_the_stream_began_cancels_its_job(manual: Stack) -> None:
    async def begin_and_leave() -> None:
        wanted = request("image_1", task="text-to-image")
        await manual.manager.submit(wanted)
        response = streaming.respond(manual.manager, wanted, "image_generation", {})
        await response(SCOPE, gone, unheard)

    manual.call(begin_and_leave())
    (spec,) = manual.call(manual.peer.submitted())
    assert manual.call(manual.peer.next(m.Cancel)).samples == (spec.id,)


async def gone() -> Message:
    return {"type": "http.disconnect"}


async def unheard(message: Message) -> None:
    pass


@pytest.mark.anyio
async def test_who_leaves_while_the_connection_is_kept_alive_ends_the_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.0)
    full, ended, wrong = asyncio.Event(), asyncio.Event(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))

    async def events() -> AsyncGenerator[sse.Event]:
        try:
            await asyncio.Event().wait()
            yield sse.Event("never", {})
        finally:
            ended.set()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            full.set()
            await asyncio.Event().wait()

    async def receive() -> Message:
        await full.wait()
        return {"type": "http.disconnect"}

    await sse.respond(events())(SCOPE, receive, send)
    assert ended.is_set()
    await asyncio.sleep(0)
    assert wrong == []
