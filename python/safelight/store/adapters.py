"""Adapters (LoRA) on disk: `<root>/<sha256>.safetensors`, and `catalog.json`, which names them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from safelight.errors import ConfigError
from safelight.request import Adapter

_CHUNK = 2**20  # bytes
_PART = ".safelight-{}.part"


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that an administrator gave a name."""

    source: str
    """The path or hub id it came from, as it was given."""
    digest: str


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The adapters that an administrator chose for the requests of one model."""

    adapters: tuple[Adapter, ...]
    on: bool = True
    """Whether later requests get them; those that were turned off can be turned on again."""
    merged: bool = False

    @property
    def in_force(self) -> tuple[Adapter, ...]:
        """What a request gets that asks for nothing."""
        return self.adapters if self.on else ()


class Catalog(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `catalog.json` holds."""

    registered: dict[str, Registered] = {}
    chosen: dict[str, Choice] = {}
    """By model."""
    started_with: tuple[str, ...] = ()
    """The settings of the start that are already in `chosen`."""

    @property
    def digests(self) -> set[str]:
        """Files that it needs."""
        chosen = {a.digest for choice in self.chosen.values() for a in choice.adapters}
        return chosen | {entry.digest for entry in self.registered.values()}


class AdapterStore:
    """Copies of the adapters, so that nothing done to the originals reaches an accepted request.

    Copies and not links: a file that is overwritten in place changes under all its names.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self._catalog = self.root / "catalog.json"

    def place(self, digest: str) -> Path:
        """Absolute path of the adapter with this SHA-256."""
        return self.root / f"{digest}.safetensors"

    def located(self, adapters: Iterable[Adapter]) -> tuple[Adapter, ...]:
        """With the paths of their files."""
        replace = msgspec.structs.replace
        return tuple(replace(one, path=str(self.place(one.digest))) for one in adapters)

    def open(self) -> tuple[Catalog, set[str]]:
        """The catalog, and the digests of all files; what a killed copy left is removed.

        Raises `ConfigError` for a catalog that cannot be read.
        """
        for left in self.root.glob(_PART.format("*")):
            left.unlink(missing_ok=True)
        return self._read(), {path.stem for path in self.root.glob("*.safetensors")}

    def _read(self) -> Catalog:
        try:
            return msgspec.json.decode(self._catalog.read_bytes(), type=Catalog)
        except FileNotFoundError:
            return Catalog()
        except (OSError, msgspec.DecodeError) as failure:
            raise ConfigError(
                f"The catalog of adapters {self._catalog} cannot be read: {failure}. Mend it, or "
                "remove it and register the adapters again.",
                param="data_dir",
            ) from failure

    def write(self, catalog: Catalog) -> None:
        """Replace the catalog, atomically and durably."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self._part() as (part, file):
            file.write(msgspec.json.encode(catalog))
            _flush(file)
            part.replace(self._catalog)
        self._flush_names()

    def take(self, source: Path) -> tuple[Path, str]:
        """Copy a file to a nameless place; that place, and the SHA-256 of what was copied.

        Large: not for the thread of the job store. Whoever takes it, keeps it or unlinks it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        part = self._nameless()
        try:
            with source.open("rb") as original, part.open("xb") as copy:
                while chunk := original.read(_CHUNK):
                    digest.update(chunk)
                    copy.write(chunk)
                _flush(copy)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        return part, digest.hexdigest()

    def keep(self, part: Path, digest: str) -> None:
        """Give a copy its name. Raises `OSError`, and then the copy is gone."""
        try:
            part.replace(self.place(digest))
        finally:
            part.unlink(missing_ok=True)
        self._flush_names()

    def discard(self, digests: Iterable[str]) -> None:
        """Remove the files of these adapters."""
        for digest in digests:
            self.place(digest).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _part(self) -> Iterator[tuple[Path, BinaryIO]]:
        """A file of our own, gone afterwards unless it was renamed."""
        part = self._nameless()
        try:
            with part.open("xb") as file:
                yield part, file
        finally:
            part.unlink(missing_ok=True)

    def _flush_names(self) -> None:
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _nameless(self) -> Path:
        return self.root / _PART.format(secrets.token_hex(8))


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
