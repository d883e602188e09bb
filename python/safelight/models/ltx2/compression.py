"""The first picture as a video's: LTX-2 was trained on frames that H.264 had compressed.

diffusers does it with PyAV. Where that is not installed, the ffmpeg that writes our videos does the
same.
"""

from __future__ import annotations

import subprocess

import imageio_ffmpeg
import numpy as np
from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf
from diffusers.utils import is_av_available
from numpy.typing import NDArray

from safelight.errors import GenerationFailed

Pixels = NDArray[np.uint8]
"""[height, width, 3]; odd sides lose their last row or column."""


def compressed(pixels: Pixels, crf: int) -> Pixels:
    """The picture through H.264 at this constant rate factor (0 to 51, the higher the worse)."""
    if is_av_available():
        result: Pixels = apply_image_conditioning_crf(pixels, crf)
        return result
    return with_ffmpeg(pixels, crf)


def with_ffmpeg(pixels: Pixels, crf: int) -> Pixels:
    """As `apply_image_conditioning_crf`."""
    height, width = (side // 2 * 2 for side in pixels.shape[:2])
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24")
    encode = (
        "-vf",
        "scale=flags=bilinear,format=yuv420p",
        "-c:v",
        "libx264",
        "-crf",
        str(crf),
        "-preset",
        "veryfast",
    )
    stream = _ffmpeg(
        *(*raw, "-video_size", f"{width}x{height}", "-framerate", "1", "-i", "pipe:0"),
        *(*encode, "-f", "h264", "pipe:1"),
        data=np.ascontiguousarray(pixels[:height, :width]).tobytes(),
    )
    frame = _ffmpeg("-f", "h264", "-i", "pipe:0", "-frames:v", "1", *raw, "pipe:1", data=stream)
    return np.frombuffer(frame, np.uint8).reshape(height, width, 3)


def _ffmpeg(*arguments: str, data: bytes) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-threads", "1", *arguments]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip()
        raise GenerationFailed(f"The input picture could not be compressed: {words}")
    return done.stdout
