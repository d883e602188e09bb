"""Which adapters stay loaded: those used last, in a part of the device's memory.

A catalog may have hundreds, and every one that was ever asked for would otherwise stay on the
device until samples no longer fit.
"""

from __future__ import annotations

import os
from collections.abc import Collection

import torch

SHARE = 8
"""They may have one part of so many of the memory; more only if a single request has more."""


def limit_of(device: torch.device) -> int:
    """Bytes that adapters may have there."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1] // SHARE
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // SHARE


class Kept:
    """Sizes by digest, those used longest ago first."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}

    def add(self, digest: str, nbytes: int) -> None:
        """It is loaded, or once more of it."""
        self._sizes[digest] = self._sizes.pop(digest, 0) + nbytes

    def used(self, digest: str) -> None:
        self._sizes[digest] = self._sizes.pop(digest)

    def drop(self, digest: str) -> None:
        """Unknown ones are ignored."""
        self._sizes.pop(digest, None)

    def superfluous(self, nbytes: int, limit: int, needed: Collection[str]) -> list[str]:
        """Those to be dropped before `nbytes` more are loaded; none of `needed`."""
        over, found = sum(self._sizes.values()) + nbytes - limit, []
        for digest, size in self._sizes.items():
            if over > 0 and digest not in needed:
                found.append(digest)
                over -= size
        return found
