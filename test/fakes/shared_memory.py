"""Frames in shared memory as a rank leaves them, and the messages that name them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safelight.request import Delivery, MediaFormat
from safelight.wire.messages import Frames

NAME = "safelight-test"


def clip(frames: int, height: int, width: int) -> NDArray[np.uint8]:
    """A smooth moving gradient, uint8 [T, H, W, 3]; every frame differs."""
    t, y, x = np.mgrid[0:frames, 0:height, 0:width]
    red, green = 255 * x // width, 255 * y // height
    return np.stack([red, green, (20 * t + 40) % 256], axis=-1).astype(np.uint8)


@contextlib.contextmanager
def in_memory(pixels: NDArray[np.uint8]) -> Iterator[str]:
    """A `/proc/<pid>/fd/<n>` path of a memfd that holds `pixels`."""
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(pixels.tobytes())
        yield f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)


def frames_message(
    memory: str,
    pixels: NDArray[np.uint8],
    path: Path | str,
    format: MediaFormat,
    *,
    sample: str = "job.0",
    fps: int = 8,
    parameters: dict[str, str] | None = None,
) -> Frames:
    frames, height, width, channels = pixels.shape
    return Frames(
        sample=sample,
        attempt=1,
        memory=memory,
        shape=(frames, height, width, channels),
        delivery=Delivery(
            path=str(path), format=format, fps=fps, compression=95, parameters=parameters or {}
        ),
    )
