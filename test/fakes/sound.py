"""Tones, the messages that carry them, and what of them is in a file: heard with ffmpeg."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from fakes.shared_memory import in_memory
from safelight.wire.messages import Sound

_STREAM = re.compile(r"Audio: (?P<codec>\w+).*?, (?P<rate>\d+) Hz, (?P<layout>\w+)")


@dataclass(frozen=True)
class Audio:
    codec: str
    sample_rate: int
    layout: str


def tone(
    seconds: float, rate: int = 24_000, hz: tuple[float, ...] = (440.0, 440.0), level: float = 0.5
) -> NDArray[np.float32]:
    """A sine of each of `hz`, one a channel: float32 [samples, channels]."""
    moments = np.arange(round(seconds * rate))[:, None] / rate
    return (level * np.sin(2 * np.pi * np.array(hz) * moments)).astype(np.float32)


@contextlib.contextmanager
def sounding(samples: NDArray[np.float32], rate: int = 24_000) -> Iterator[Sound]:
    """The samples in a memfd, as a rank leaves them."""
    count, channels = samples.shape
    with in_memory(np.ascontiguousarray(samples).view(np.uint8)) as memory:
        yield Sound(memory=memory, shape=(count, channels), sample_rate=rate)


def audio(path: Path) -> Audio | None:
    """What ffmpeg says of the audio stream; None without one."""
    said = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)],
        capture_output=True,
        text=True,
        check=False,
    ).stderr
    found = _STREAM.search(said)
    return found and Audio(found["codec"], int(found["rate"]), found["layout"])


def heard(path: Path, channels: int = 2) -> NDArray[np.float32]:
    """The audio stream decoded, float32 [samples, channels]."""
    raw = subprocess.run(
        [
            *(imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path)),
            *("-map", "0:a", "-f", "f32le", "pipe:1"),
        ],
        capture_output=True,
        check=True,
    ).stdout
    return np.frombuffer(raw, np.float32).reshape(-1, channels)


def pitch(samples: NDArray[np.float32], rate: int = 24_000) -> float:
    """The loudest frequency of one channel [samples], in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate / len(samples))


def level(samples: NDArray[np.float32]) -> float:
    """Root of the mean square; of a sine, 0.707 of its height."""
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))
