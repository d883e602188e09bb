"""`--lora-dir`: a directory whose files are adapters, read again whenever one is asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path

from safelight.errors import Unavailable
from safelight.manager import adapter_files
from safelight.manager.shelf import Held, Shelf

_Stamp = tuple[int, int, int]


class CatalogDirectory:
    """The adapters of a directory, and the digests of those that were used since the start."""

    def __init__(self, path: str | None, shelf: Shelf) -> None:
        """Files are brought to `shelf`."""
        self._path = None if path is None else Path(path)
        self._shelf = shelf
        self._known: dict[Path, tuple[_Stamp, str]] = {}
        self._bringing = asyncio.Lock()

    @property
    def digests(self) -> set[str]:
        return {digest for _, digest in self._known.values()}

    async def names(self) -> dict[str, Path]:
        """Its adapters by name, as they are now. Raises `Unavailable` if it cannot be read."""
        if self._path is None:
            return {}
        try:
            found = await asyncio.to_thread(adapter_files.catalog, self._path)
        except OSError as failure:
            raise Unavailable(
                f"--lora-dir {self._path} cannot be read: {failure.strerror}. It must be a "
                "directory of .safetensors files."
            ) from failure
        for path in self._known.keys() - set(found.values()):
            del self._known[path]
        return found

    async def digest(self, name: str, held: Held) -> str | None:
        """The digest of an adapter, whose file is on the shelf then; None: there is no such.

        Raises `Unavailable` if the directory cannot be read, and as `Shelf.bring`.
        """
        path = (await self.names()).get(name)
        if path is None:
            return None
        digest = self._there(path)
        if digest is None:
            async with self._bringing:  # it is large: of all who ask at once, one copies it
                digest = self._there(path) or await self._bring(path, held)
        held.add(digest)
        return digest

    def _there(self, path: Path) -> str | None:
        """The digest of a file, if it is on the shelf as it is now."""
        stamp, digest = self._known.get(path, (None, ""))
        return digest if stamp == _stamp_of(path) and digest in self._shelf else None

    async def _bring(self, path: Path, held: Held) -> str:
        stamp = _stamp_of(path)  # before it is read
        digest = await self._shelf.bring(path, held, param="lora")
        self._known[path] = stamp, digest
        return digest


def _stamp_of(path: Path) -> _Stamp:
    """Tells a file from another one, or from itself before it was changed."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0  # whoever reads it will say why it cannot be read
    return found.st_ino, found.st_size, found.st_mtime_ns
