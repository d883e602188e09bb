"""The files of adapters: brought in when they are first used, removed when nobody needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from safelight.errors import Unavailable
from safelight.manager import adapter_files
from safelight.manager.database import Database
from safelight.store.adapters import AdapterStore, Catalog

Held = set[str]
"""Digests whose files stay where they are."""


class Shelf:
    """Belongs to one event loop; its work on the disk keeps its place among the store's."""

    def __init__(self, store: AdapterStore) -> None:
        self.store = store
        self._files: set[str] = set()
        self._held: dict[int, Held] = {}

    async def open(self, db: Database) -> Catalog:
        """Raises `ConfigError` if the catalog cannot be read."""
        self._db = db
        catalog, self._files = await db.run(self.store.open)
        return catalog

    def __contains__(self, digest: str) -> bool:
        return digest in self._files

    @contextmanager
    def holding(self) -> Iterator[Held]:
        """Files whose digests are put into it stay while it is entered."""
        held: Held = set()
        self._held[id(held)] = held
        try:
            yield held
        finally:
            del self._held[id(held)]

    async def bring(self, path: Path, held: Held, *, param: str) -> str:
        """Check a file and copy it to us; its digest. Raises `InvalidRequest` or `Unavailable`."""
        await asyncio.to_thread(adapter_files.check, path, param=param)
        try:
            part, digest = await asyncio.to_thread(self.store.take, path)
            held.add(digest)
            await self._db.run(partial(self.store.keep, part, digest))
        except OSError as failure:
            raise Unavailable(
                f"The adapter {path} cannot be kept: {failure.strerror}.", code="storage_failed"
            ) from failure
        self._files.add(digest)
        return digest

    async def write(self, catalog: Catalog) -> None:
        """Make a catalog durable. Raises `Unavailable`."""
        try:
            await self._db.run(partial(self.store.write, catalog))
        except OSError as failure:
            text = f"The catalog of adapters cannot be written: {failure.strerror}."
            raise Unavailable(text, code="storage_failed") from failure

    async def sweep(self, needed: Held) -> tuple[str, ...]:
        """Remove the files that are neither needed nor held; their digests."""
        gone = tuple(sorted(self._files.difference(needed, *self._held.values())))
        self._files.difference_update(gone)
        if gone:
            await self._db.run(partial(self.store.discard, gone))
        return gone
