"""`--lora-dir`: a directory whose files are adapters, read again whenever one is asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path

from safelight.errors import Unavailable
from safelight.manager import adapter_files

Stamp = tuple[int, int, int]


class CatalogDirectory:
    """The adapters of a directory, and the digests of those that were used since the start."""

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._known: dict[Path, tuple[Stamp, str]] = {}

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

    async def find(self, name: str) -> Path | None:
        """The file of an adapter. Raises `Unavailable` if the directory cannot be read."""
        return (await self.names()).get(name)

    def known(self, path: Path, stamp: Stamp) -> str | None:
        """The digest of a file, if it was noted with this stamp."""
        noted = self._known.get(path)
        return None if noted is None or noted[0] != stamp else noted[1]

    def note(self, path: Path, stamp: Stamp, digest: str) -> None:
        """Remember a digest; the stamp must be older than the reading of the file."""
        self._known[path] = stamp, digest


def stamp_of(path: Path) -> Stamp:
    """Tells a file from another one, or from itself before it was changed."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0  # whoever reads it will say why it cannot be read
    return found.st_ino, found.st_size, found.st_mtime_ns
