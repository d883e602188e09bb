"""Frames in anonymous shared memory (`memfd_create(2)`).

There is no name in the file system, so nothing can be left behind however a process ends: the
memory lives as long as somebody holds it. The output manager opens it through `/proc`.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from safelight.models.family import Frames


class SharedFrames:
    """One sample's frames, shared until closed."""

    def __init__(self, name: str, frames: Frames) -> None:
        """Copies `frames`, uint8 [T, H, W, 3]. Raises `OSError` when memory is short."""
        self._fd = os.memfd_create(f"safelight:{name}", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(self._fd, 0, frames.nbytes)
            with mmap.mmap(self._fd, frames.nbytes) as memory:
                np.frombuffer(memory, np.uint8)[:] = frames.reshape(-1)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def path(self) -> str:
        """Opens the memory from any process of this user."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def close(self) -> None:
        os.close(self._fd)
