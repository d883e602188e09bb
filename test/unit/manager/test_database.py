"""The job store on a disk that is full: what is asked is refused, what has happened is noted later.

The disk is SQLite's own limit of a file's pages, which fails as a full disk does.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fakes.engine_peer import request
from safelight.errors import Unavailable
from safelight.manager import database
from safelight.manager.database import Database
from safelight.request import GenerationRequest
from safelight.store.jobs import JobStore
from safelight.store.tables import Status

pytestmark = pytest.mark.anyio
ROOM = 2**30  # pages


def long(name: str) -> GenerationRequest:
    """A request that does not fit into pages that are there already."""
    return request(name, prompt="x" * 32_000)


async def room(db: Database, pages: int) -> None:
    """Let the file have so many pages, or those it has."""

    def limit(store: JobStore) -> None:
        with store._engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    await db.call(limit)


async def test_a_job_that_cannot_be_kept_is_refused_and_leaves_nothing(lab: Any) -> None:
    manager = await lab.manager()
    await room(manager._db, 1)
    with pytest.raises(Unavailable, match="full") as told:
        await manager.submit(long("video_1"))
    assert told.value.code == "storage_failed"
    assert list((lab.data / "content").iterdir()) == []
    assert not manager.broken.done()
    await room(manager._db, ROOM)
    assert (await manager.submit(long("video_1"))).status is Status.QUEUED


async def test_what_has_happened_waits_for_room(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "RETRY_S", 0.01)
    db = (await lab.manager())._db
    await room(db, 1)
    refused = asyncio.Event()

    async def add() -> None:
        try:
            await db.call(JobStore.add, long("video_1"))
        except Unavailable:
            refused.set()
            raise

    waiting = asyncio.create_task(db.insist(add))
    await refused.wait()
    await room(db, ROOM)
    await waiting
    assert await db.call(JobStore.get, "video_1") is not None
