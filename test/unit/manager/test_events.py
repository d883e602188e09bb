"""The numbered events of a job: none missing, none twice, whatever restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fakes.engine_peer import request
from safelight.errors import NotFound, Unavailable
from safelight.manager.manager import RequestManager
from safelight.request import State
from safelight.store.journal import JobEvent

pytestmark = pytest.mark.anyio


async def followed(manager: RequestManager, job_id: str, after: int = 0) -> list[JobEvent]:
    """All events to the end."""
    return [event async for event in manager.events(job_id, after)]


async def until(manager: RequestManager, job_id: str, kind: str) -> list[JobEvent]:
    """Events up to the first of that kind."""
    seen = []
    events = manager.events(job_id)
    async for event in events:
        seen.append(event)
        if event.kind == kind:
            break
    await events.aclose()
    return seen


def numbers(events: list[JobEvent]) -> list[int]:
    return [event.number for event in events]


async def test_from_the_queue_to_the_file(lab: Any) -> None:
    manager = await lab.manager()
    await manager.submit(request())
    (spec,) = await lab.peer.submitted()
    following = asyncio.create_task(followed(manager, "video_1"))
    await lab.peer.progress(spec, State.QUEUED, position=3)
    for step in (1, 2):
        await lab.peer.progress(spec, State.DENOISING, step=step)
    await lab.peer.progress(spec, State.DENOISING, step=2, eta=9.0)  # no news
    data = await lab.peer.preview(spec, 0, step=2)
    await lab.peer.deliver(spec)  # on the same link, behind the preview
    events = await following
    assert numbers(events) == list(range(1, len(events) + 1))
    assert [event.kind for event in events][:2] == ["queued", "queued"]
    assert [e.steps_done for e in events if e.kind == "progress"][:2] == [1, 2]
    (shown,) = (event.preview for event in events if event.preview is not None)
    assert await asyncio.to_thread(Path(shown.path).read_bytes) == data
    assert (shown.sample, shown.number, shown.step) == (0, 0, 2)
    assert events[-1].kind == "completed" and events[-1].progress == 100
    assert events[1].position == 3


async def test_those_that_were_missed_are_sent_again_and_no_others(lab: Any) -> None:
    manager = await lab.manager()
    await manager.submit(request())
    (spec,) = await lab.peer.submitted()
    await lab.peer.progress(spec, State.DENOISING, step=1)
    seen = await until(manager, "video_1", "progress")
    await lab.peer.deliver(spec)
    await manager.wait("video_1")
    rest = await followed(manager, "video_1", seen[-1].number)
    assert numbers(seen + rest) == list(range(1, len(seen) + len(rest) + 1))
    assert await followed(manager, "video_1") == seen + rest
    assert await followed(manager, "video_1", after=10_000) == seen + rest


async def test_numbers_go_on_in_the_next_life_of_the_manager(lab: Any) -> None:
    first = await lab.manager()
    await first.submit(request())
    (spec,) = await lab.peer.submitted()
    await lab.peer.progress(spec, State.DENOISING, step=1)
    seen = await until(first, "video_1", "progress")
    following = asyncio.create_task(followed(first, "video_1"))
    await asyncio.sleep(0)
    await lab.stop(first)
    with pytest.raises(Unavailable):
        await following
    second = await lab.manager()
    (spec,) = await lab.peer.submitted()
    await lab.peer.deliver(spec)
    await second.wait("video_1")
    events = await followed(second, "video_1")
    assert events[: len(seen)] == seen
    assert numbers(events) == list(range(1, len(events) + 1))
    assert {event.attempt for event in events} == {1, 2}
    assert [event.last for event in events] == [False] * (len(events) - 1) + [True]


async def test_the_end_is_told_even_if_it_was_not_written_down(lab: Any) -> None:
    manager = await lab.manager()
    await manager.submit(request())
    await lab.peer.submitted()
    await manager.cancel("video_1")
    path = manager.content_store.journal("video_1")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))  # as if it had been killed before it wrote the last
    events = await followed(manager, "video_1")
    assert numbers(events) == list(range(1, len(lines) + 1))
    assert (events[-1].kind, events[-1].error_code) == ("failed", "cancelled")


async def test_a_journal_that_cannot_be_read_keeps_no_server_from_starting(lab: Any) -> None:
    first = await lab.manager()
    await first.submit(request())
    await lab.peer.submitted()
    await lab.stop(first)
    first.content_store.journal("video_1").write_bytes(b"\0" * 64 + b"\n")  # as a loss of power
    second = await lab.manager()
    (spec,) = await lab.peer.submitted()
    await lab.peer.deliver(spec)
    await second.wait("video_1")
    assert (await followed(second, "video_1"))[-1].kind == "completed"


async def test_a_preview_that_comes_after_its_job_was_deleted_leaves_nothing(lab: Any) -> None:
    manager = await lab.manager()
    for job_id in ("video_1", "video_2"):
        await manager.submit(request(job_id))
    (first,), (second,) = [await lab.peer.submitted() for _ in range(2)]
    await manager.delete("video_1")
    directory = Path(first.delivery.path).parent
    directory.mkdir()  # the output manager makes it anew
    await lab.peer.preview(first, 0, step=1)
    await lab.peer.deliver(second)  # on the same link, behind the preview
    await manager.wait("video_2")
    assert not directory.exists()


async def test_a_preview_of_an_older_attempt_is_not_told(lab: Any) -> None:
    first = await lab.manager()
    await first.submit(request())
    (old,) = await lab.peer.submitted()
    await lab.stop(first)
    second = await lab.manager()
    (spec,) = await lab.peer.submitted()
    await lab.peer.preview(old, 0, step=1)
    await lab.peer.preview(spec, 1, step=2)
    await lab.peer.deliver(spec)
    await second.wait("video_1")
    shown = [e.preview.number for e in await followed(second, "video_1") if e.preview]
    assert shown == [1]


async def test_no_job_no_events(lab: Any) -> None:
    manager = await lab.manager()
    with pytest.raises(NotFound):
        await followed(manager, "video_2")
