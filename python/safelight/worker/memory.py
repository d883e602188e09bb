"""Frames and sound in anonymous shared memory (`memfd_create(2)`).

There is no name in the file system, so nothing can be left behind however a process ends: the
memory lives as long as somebody holds it. The output manager opens it through `/proc`.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np


class SharedArray:
    """One sample's frames, or its sound, shared until closed."""

    def __init__(self, name: str, values: np.ndarray[Any, Any]) -> None:
        """Copies `values`, in C order. Raises `OSError` when memory is short."""
        self.nbytes = values.nbytes
        self._fd = os.memfd_create(f"safelight:{name}", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(self._fd, 0, values.nbytes)
            with mmap.mmap(self._fd, values.nbytes) as memory:
                np.frombuffer(memory, values.dtype)[:] = values.reshape(-1)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def path(self) -> str:
        """Opens the memory from any process of this user."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def close(self) -> None:
        os.close(self._fd)
