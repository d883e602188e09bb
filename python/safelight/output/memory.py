"""Shared memory of ranks: checked before it is touched, never copied here.

A descriptor is believed only after the kernel has confirmed it: a mapping that is longer than its
file kills the process that reads past the end (SIGBUS), so the size is compared first.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from safelight.errors import GenerationFailed
from safelight.wire.messages import FRAMES_LOST


@dataclass(frozen=True)
class Shared:
    """Open shared memory. A context manager that closes it.

    Holding the descriptor keeps the content alive after the rank that made it is gone.
    """

    fd: int

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.fd)


def open_memory(memory: str, nbytes: int, what: str) -> int:
    """A descriptor of `nbytes` of shared memory; `what` is in it, for people.

    Raises `GenerationFailed` with code `frames_lost` if it is gone (its rank died), `bad_frames`
    if it cannot be opened otherwise or is not of that size.
    """
    fd = _open(memory, what)
    problem = _problem(os.fstat(fd), nbytes)
    if problem:
        os.close(fd)
        raise GenerationFailed(f"{what} {problem}.", code="bad_frames")
    return fd


def _open(memory: str, what: str) -> int:
    if "\0" in memory:
        raise GenerationFailed(f"{what}: the path holds a NUL.", code="bad_frames")
    try:
        # O_NONBLOCK: a path that turns out to be a FIFO must not stop the process.
        return os.open(memory, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as failure:
        # Gone with its rank, and to be made again; anything else would go wrong again.
        gone = isinstance(failure, FileNotFoundError | ProcessLookupError)
        raise GenerationFailed(
            f"{what} at {memory} cannot be opened: {failure.strerror}.",
            code=FRAMES_LOST if gone else "bad_frames",
        ) from failure


def _problem(status: os.stat_result, expected: int) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return "are not in shared memory or a file"
    if status.st_size != expected:
        return f"need {expected} bytes, the memory has {status.st_size}"
    return None
