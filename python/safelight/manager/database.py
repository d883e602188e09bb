"""The job store behind one thread of its own, so that the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy.exc import OperationalError

from safelight import log
from safelight.errors import Unavailable
from safelight.store.jobs import JobStore
from safelight.store.webhooks import WebhookStore

logger = log.get(__name__)

RETRY_S = 1.0
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)

P = ParamSpec("P")
R = TypeVar("R")


class Database:
    """Calls run one after another, in the order in which they were made."""

    def __init__(self, store: JobStore, executor: ThreadPoolExecutor) -> None:
        self._store = store
        self._executor = executor

    @classmethod
    async def open(cls, path: Path) -> Database:
        """Raises `ConfigError` if another server has the directory."""
        executor = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        try:
            store = await asyncio.get_running_loop().run_in_executor(executor, JobStore, path)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(store, executor)

    async def call(
        self, method: Callable[Concatenate[JobStore, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """`method` of the store, for example `JobStore.get`. Raises as `run`."""
        return await self.run(lambda: method(self._store, *args, **kwargs))

    async def webhooks(
        self, method: Callable[Concatenate[WebhookStore, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """`method` of the store's part for webhooks, for example `WebhookStore.agenda`."""
        return await self.run(lambda: method(self._store.webhooks, *args, **kwargs))

    async def run(self, work: Callable[[], R]) -> R:
        """Other disk work that must keep its place among the calls.

        Raises `Unavailable` if the disk is full, and then nothing has changed.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except OperationalError as failure:
            if not _no_room(failure):
                raise
            text = f"The job store cannot be written: {failure.orig}."
            raise Unavailable(text, code="storage_failed") from failure

    async def insist(self, work: Callable[[], Awaitable[R]]) -> R:
        """`work`, repeated until there is room on the disk: what has happened must be noted."""
        while True:
            try:
                return await work()
            except Unavailable as failure:
                logger.error("waiting for room on the disk", why=failure.message)
                await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        await self.run(self._store.close)
        self._executor.shutdown()


def _no_room(failure: OperationalError) -> bool:
    """Whether it is the disk's fault. Extended codes have the plain one in their low byte."""
    found = failure.orig
    return isinstance(found, sqlite3.Error) and found.sqlite_errorcode & 0xFF in _NO_ROOM
