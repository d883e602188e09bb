"""Loading and unloading as callers see it: what they wait for, and what ends their waiting."""

from __future__ import annotations

import asyncio

import pytest

from safelight.config import build
from safelight.errors import ModelNotFound, Unavailable
from safelight.manager.models import Models
from safelight.wire import messages as m

pytestmark = pytest.mark.anyio


class Desk:
    """Models `a`, loaded from the start, and `b`; what was sent about them."""

    def __init__(self) -> None:
        models = [{"name": "a", "device": "cpu"}, {"name": "b", "device": "cpu", "load": False}]
        self.sent: list[m.Drain | m.LoadModel | m.UnloadModel] = []
        self.models = Models(build({"models": models, "max_loaded_models": 1}), self._send)

    async def _send(self, message: m.Drain | m.LoadModel | m.UnloadModel) -> None:
        self.sent.append(message)

    async def hear(self, model: str, state: str) -> None:
        await self.models.hear(m.ModelState(model=model, state=state))  # type: ignore[arg-type]


@pytest.fixture
async def desk() -> Desk:
    desk = Desk()
    await desk.models.start()
    return desk


async def test_what_is_loaded_from_the_start_is_only_asked_about(desk: Desk) -> None:
    assert desk.sent == [m.LoadModel(model="a", wanted=False)]
    assert not desk.models.idle


async def test_a_model_that_made_room_before_a_restart_stays_unloaded(desk: Desk) -> None:
    await desk.hear("b", "loaded")
    await desk.hear("a", "unloaded")
    assert desk.sent[1:] == []
    await desk.models.want("a")
    assert desk.sent[1:] == [m.Drain(model="b")]


async def test_who_waits_for_a_model_hears_that_it_was_unloaded_instead(desk: Desk) -> None:
    await desk.hear("a", "unloaded")
    assert desk.models.idle
    waiting = asyncio.ensure_future(desk.models.load("b"))
    await asyncio.sleep(0)
    assert desk.sent[1:] == [m.LoadModel(model="b")]
    unloading = asyncio.ensure_future(desk.models.unload("b"))
    await asyncio.sleep(0)
    await desk.models.drained("b")
    await desk.hear("b", "unloaded")
    await asyncio.wait_for(unloading, 5)
    with pytest.raises(Unavailable, match="unloaded before"):
        await asyncio.wait_for(waiting, 5)
    assert desk.models.idle


async def test_a_failure_is_told_with_its_reason(desk: Desk) -> None:
    await desk.hear("a", "unloaded")
    waiting = asyncio.ensure_future(desk.models.load("b"))
    await asyncio.sleep(0)
    await desk.models.hear(m.ModelState(model="b", state="failed", detail="no memory"))
    with pytest.raises(Unavailable, match="no memory"):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(ModelNotFound):
        await desk.models.load("c")
