"""Finished frames in shared memory: checked before they are touched, never copied here.

A descriptor is believed only after the kernel has confirmed it: a mapping that is longer than its
file kills the process that reads past the end (SIGBUS), so the size is compared first.
"""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from safelight.errors import GenerationFailed
from safelight.wire.messages import FRAMES_LOST

MAX_FRAMES = 4096
MAX_SIDE = 8192  # pixels; the bounds of `request.Sampling`

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class SharedFrames:
    """Open uint8 frames of `shape` [T, H, W, 3], C order. A context manager that closes them.

    Holding the descriptor keeps the pixels alive after the rank that made them is gone.
    """

    fd: int
    shape: Shape

    def pixels(self) -> NDArray[np.uint8]:
        """A read-only view [T, H, W, 3]; unmapped when the last reference to it goes."""
        count = int(np.prod(self.shape))
        mapping = mmap.mmap(self.fd, count, prot=mmap.PROT_READ)
        return np.frombuffer(mapping, np.uint8, count).reshape(self.shape)

    def __enter__(self) -> SharedFrames:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.fd)


def open_frames(memory: str, shape: Shape) -> SharedFrames:
    """The frames behind a descriptor.

    Raises `GenerationFailed` with code `frames_lost` if they are gone (their rank died),
    `bad_frames` if they cannot be opened otherwise, if the shape is out of bounds, or if it is not
    what the memory holds.
    """
    expected = _nbytes(shape)
    fd = _open(memory)
    problem = _problem(os.fstat(fd), expected)
    if problem:
        os.close(fd)
        raise GenerationFailed(f"Frames of shape {list(shape)} {problem}.", code="bad_frames")
    return SharedFrames(fd, shape)


def _open(memory: str) -> int:
    if "\0" in memory:
        raise GenerationFailed("The frames' path holds a NUL.", code="bad_frames")
    try:
        # O_NONBLOCK: a path that turns out to be a FIFO must not stop the process.
        return os.open(memory, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as failure:
        # Gone with its rank, and to be made again; anything else would go wrong again.
        gone = isinstance(failure, FileNotFoundError | ProcessLookupError)
        raise GenerationFailed(
            f"The frames at {memory} cannot be opened: {failure.strerror}.",
            code=FRAMES_LOST if gone else "bad_frames",
        ) from failure


def _problem(status: os.stat_result, expected: int) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return "are not in shared memory or a file"
    if status.st_size != expected:
        return f"need {expected} bytes, the memory has {status.st_size}"
    return None


def _nbytes(shape: Shape) -> int:
    """Bytes of the frames. Raises `GenerationFailed` if the shape is out of bounds."""
    frames, height, width, channels = shape
    sides = 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE
    if not (1 <= frames <= MAX_FRAMES and sides and channels == 3):
        raise GenerationFailed(
            f"Frames of shape {list(shape)}: [T, H, W, 3] with T up to {MAX_FRAMES}, H and W up "
            f"to {MAX_SIDE} is needed.",
            code="bad_frames",
        )
    return frames * height * width * channels
