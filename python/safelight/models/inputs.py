"""The input pictures of a sample, as the pipelines take them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from safelight.errors import GenerationFailed
from safelight.request import Picture


def image(picture: Picture) -> Image.Image:
    """The picture as the manager decoded it, mode RGB or L. Raises `GenerationFailed` if its file
    is gone or is not of its size."""
    shape = (picture.height, picture.width) + ((3,) if picture.mode == "RGB" else ())
    try:
        pixels = np.fromfile(picture.path, np.uint8).reshape(shape)
    except (OSError, ValueError) as failure:
        raise GenerationFailed(
            f"The input picture {picture.path} cannot be read: {failure}", code="input_lost"
        ) from failure
    return Image.fromarray(pixels)
