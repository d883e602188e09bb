"""Pictures of a finished clip: one of its frames, its thumbnail, its spritesheet."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

from PIL import Image

from safelight.errors import GenerationFailed
from safelight.output import video

PATIENCE_S = 120
_THUMBNAIL_SIDE = 512  # pixels, of the longer side
_TILE_SIDE = 256
_TILES = 16  # of a spritesheet, at most
_EXACT = "scale=out_range=pc:in_color_matrix=bt709:flags=bicubic+accurate_rnd+full_chroma_int"


def frame(path: Path, number: int, size: tuple[int, int]) -> bytes:
    """Frame `number` of an MP4 as RGB pixels, uint8 [height, width, 3], of `size` (width, height):
    what was padded to make the sides even is cut off. Raises `GenerationFailed`."""
    pick = f"select=eq(n\\,{number}),{_EXACT},format=rgb24,crop={size[0]}:{size[1]}:0:0"
    pixels = _decoded(path, pick)
    if len(pixels) != size[0] * size[1] * 3:
        raise GenerationFailed(
            f"The video has no frame {number} of {size[0]}x{size[1]}.", code="bad_frames"
        )
    return pixels


def thumbnail(path: Path, target: Path, *, size: tuple[int, int]) -> None:
    """Write a WebP of the first frame of a clip of `size` (width, height).
    Raises `GenerationFailed`."""
    width, height = _within(size, _THUMBNAIL_SIDE)
    pixels = _decoded(path, f"{_EXACT}:w={width}:h={height},format=rgb24")
    _picture(pixels, width, height).save(target, format="WEBP", quality=85)


def spritesheet(path: Path, target: Path, *, frames: int, size: tuple[int, int]) -> None:
    """Write a JPEG of up to 16 of the clip's frames, evenly spaced, in rows from the first to the
    last. Raises `GenerationFailed`."""
    width, height = _within(size, _TILE_SIDE)
    shown = picked(frames)
    chosen = "+".join(f"eq(n\\,{number})" for number in shown)
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    tiled = f"select={chosen},{_EXACT}:w={width}:h={height},format=rgb24,tile={columns}x{rows}"
    pixels = _decoded(path, tiled)
    _picture(pixels, columns * width, rows * height).save(target, format="JPEG", quality=85)


def picked(frames: int) -> list[int]:
    """Which of so many frames a spritesheet shows."""
    count = min(frames, _TILES)
    return [round(place * (frames - 1) / max(1, count - 1)) for place in range(count)]


def _within(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size shrunk so that no side is longer."""
    shrink = min(1.0, side / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def _picture(pixels: bytes, width: int, height: int) -> Image.Image:
    if len(pixels) != width * height * 3:
        raise GenerationFailed("The video ends early.", code="bad_frames")
    return Image.frombytes("RGB", (width, height), pixels)


def _decoded(path: Path, filters: str) -> bytes:
    """RGB pixels of the first frame that the filters let through."""
    try:
        done = _run(path, filters)
    except subprocess.TimeoutExpired as failure:
        raise GenerationFailed("The video takes too long to read.", code="bad_frames") from failure
    if done.returncode != 0:
        raise GenerationFailed("The video cannot be read again.", code="bad_frames")
    return done.stdout


def _run(path: Path, filters: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [
            *(video.executable(), "-hide_banner", "-loglevel", "error", "-nostdin"),
            *("-threads", "1", "-f", "mp4", "-i", str(path), "-an", "-vf", filters),
            *("-fps_mode", "passthrough", "-frames:v", "1"),
            *("-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
