"""One frame to PNG, JPEG or WebP, through Pillow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from safelight.errors import GenerationFailed
from safelight.request import ImageFormat

MEDIA_TYPES: Mapping[ImageFormat, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}

_FULL_CHROMA = 90  # from this quality on, JPEG keeps colour at full resolution (4:4:4)


def encode(
    pixels: NDArray[np.uint8],
    target: Path,
    *,
    format: ImageFormat,
    compression: int,
    parameters: Mapping[str, str],
) -> None:
    """Write `pixels` [H, W, 3] to `target`.

    `compression` is the quality, 0 to 100, for JPEG and WebP. PNG is lossless and carries
    `parameters` as text chunks. Raises `GenerationFailed` for a parameter PNG cannot hold,
    `OSError` if the file cannot be written.
    """
    options = _options(format, min(100, max(0, compression)), parameters)
    Image.fromarray(pixels).save(target, format=format.upper(), **options)


def _options(format: ImageFormat, quality: int, parameters: Mapping[str, str]) -> dict[str, Any]:
    if format == "png":
        return {"pnginfo": _text_chunks(parameters)}
    if format == "jpeg":
        return {"quality": quality, "subsampling": 0 if quality >= _FULL_CHROMA else 2}
    return {"quality": quality, "method": 4}


def _text_chunks(parameters: Mapping[str, str]) -> PngInfo:
    """tEXt chunks, iTXt where Latin-1 is not enough (PNG 1.2, section 4.2.3)."""
    info = PngInfo()
    for keyword, text in parameters.items():
        if not (keyword.isascii() and keyword.isprintable() and 1 <= len(keyword) <= 79):
            raise GenerationFailed(
                f"{keyword!r:.100} cannot name a PNG text chunk: 1 to 79 ASCII characters do.",
                code="encode_failed",
            )
        info.add_text(keyword, text)
    return info
