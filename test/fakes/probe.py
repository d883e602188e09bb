"""Looks at media files with ffmpeg and by hand, independently of what wrote them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

_STREAM = re.compile(
    r"Video: (?P<codec>\w+).*?, (?P<format>yuv\w+)\((?P<colour>[^)]*)\)"
    r".*?, (?P<width>\d+)x(?P<height>\d+).*?, (?P<fps>[\d.]+) fps"
)


@dataclass(frozen=True)
class Video:
    codec: str
    pixel_format: str
    colour: str
    width: int
    height: int
    fps: float


def video(path: Path) -> Video:
    """What ffmpeg says of the video stream."""
    said = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)],
        capture_output=True,
        text=True,
        check=False,
    ).stderr
    found = _STREAM.search(said)
    assert found, said
    return Video(
        found["codec"],
        found["format"],
        found["colour"],
        int(found["width"]),
        int(found["height"]),
        float(found["fps"]),
    )


def decode(path: Path) -> NDArray[np.uint8]:
    """All frames, uint8 [T, H, W, 3]."""
    raw = subprocess.run(
        [
            *(imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path)),
            *("-fps_mode", "passthrough", "-sws_flags", "accurate_rnd+full_chroma_int"),
            *("-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"),
        ],
        capture_output=True,
        check=True,
    ).stdout
    stream = video(path)
    return np.frombuffer(raw, np.uint8).reshape(-1, stream.height, stream.width, 3)


def boxes(path: Path) -> list[str]:
    """The types of an MP4's top-level boxes, in order (ISO/IEC 14496-12, 4.2)."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        found.append(data[at + 4 : at + 8].decode("ascii"))
        at += int.from_bytes(data[at : at + 4], "big")
    return found
