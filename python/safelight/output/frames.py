"""Finished frames and their sound in shared memory, within bounds."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safelight.errors import GenerationFailed
from safelight.output.memory import Shared, open_memory
from safelight.wire.messages import Sound

MAX_FRAMES = 4096
MAX_SIDE = 8192  # pixels; the bounds of `request.Sampling`
MAX_CHANNELS = 2
MIN_RATE, MAX_RATE = 8_000, 96_000  # Hz; what AAC has

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class SharedFrames(Shared):
    """Open uint8 frames of `shape` [T, H, W, 3], C order."""

    shape: Shape

    def pixels(self) -> NDArray[np.uint8]:
        """A read-only view [T, H, W, 3]; unmapped when the last reference to it goes."""
        count = int(np.prod(self.shape))
        mapping = mmap.mmap(self.fd, count, prot=mmap.PROT_READ)
        return np.frombuffer(mapping, np.uint8, count).reshape(self.shape)


@dataclass(frozen=True)
class SharedSound(Shared):
    """Open float32 samples in [-1, 1], C order: all channels of one moment together."""

    channels: int
    sample_rate: int
    """Hz"""


def open_frames(memory: str, shape: Shape) -> SharedFrames:
    """The frames behind a descriptor.

    Raises `GenerationFailed` with code `frames_lost` if they are gone (their rank died),
    `bad_frames` if they cannot be opened otherwise, if the shape is out of bounds, or if it is not
    what the memory holds.
    """
    nbytes = _nbytes(shape)
    return SharedFrames(open_memory(memory, nbytes, f"Frames of shape {list(shape)}"), shape)


def open_sound(sound: Sound) -> SharedSound:
    """The sound behind a descriptor. Raises what `open_frames` raises."""
    samples, channels = sound.shape
    what = f"Samples of shape {list(sound.shape)} at {sound.sample_rate} Hz"
    rate = MIN_RATE <= sound.sample_rate <= MAX_RATE
    # No longer than the longest video, of one frame a second.
    if not (
        rate and 1 <= samples <= MAX_FRAMES * sound.sample_rate and 1 <= channels <= MAX_CHANNELS
    ):
        raise GenerationFailed(
            f"{what}: [samples, channels] of up to {MAX_FRAMES} s in 1 to {MAX_CHANNELS} channels, "
            f"at {MIN_RATE} to {MAX_RATE} Hz, is needed.",
            code="bad_frames",
        )
    fd = open_memory(sound.memory, samples * channels * 4, what)
    return SharedSound(fd, channels, sound.sample_rate)


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
