"""Who makes the files of a batch: what a local engine and a running server have in common."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from safelight.cli.batch.lines import Item
from safelight.cli.batch.results import File
from safelight.errors import InvalidRequest, SafelightError

PATIENCE = 5  # seconds before a full queue is asked again, if it does not say


class Lost(SafelightError):
    """Whoever makes the files is gone for good: what is left is left for `--resume`."""


class Made(NamedTuple):
    """What became of one line."""

    files: tuple[File, ...]
    """With absolute paths, durable."""
    model: str | None


class Backend(Protocol):
    """Makes lines, in one event loop."""

    async def open(self, items: Sequence[Item]) -> None:
        """Get ready for them. Raises `ConfigError` if that cannot be, or for lines that it can say
        beforehand will fail."""
        ...

    async def close(self) -> None:
        """The last call."""
        ...

    async def make(self, item: Item, directory: Path) -> Made:
        """Make its files in `directory`.

        Raises `SafelightError` if that failed, `Overloaded` or `Unavailable` if it may be asked
        again, `Lost` if nothing more can be made. Cancelled, it stops what was begun.
        """
        ...


def picture(source: str) -> str | bytes:
    """A data URL's bytes; a path as it is. Raises `InvalidRequest`."""
    if not source.startswith("data:"):
        return source
    try:
        return base64.b64decode(source.partition(",")[2], validate=True)
    except (binascii.Error, ValueError) as failure:
        raise InvalidRequest("'image' is no base64 data URL.", param="image") from failure
