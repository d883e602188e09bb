"""The job store behind one thread of its own, so that the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from safelight.store.jobs import JobStore
from safelight.store.webhooks import WebhookStore

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
        """`method` of the store, for example `JobStore.get`."""
        return await self.run(lambda: method(self._store, *args, **kwargs))

    async def webhooks(
        self, method: Callable[Concatenate[WebhookStore, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """`method` of the store's part for webhooks, for example `WebhookStore.agenda`."""
        return await self.run(lambda: method(self._store.webhooks, *args, **kwargs))

    async def run(self, work: Callable[[], R]) -> R:
        """Other disk work that must keep its place among the calls."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def close(self) -> None:
        await self.run(self._store.close)
        self._executor.shutdown()
