"""A mask changes what it covers and nothing else.

A pipeline repaints within the mask, but everything goes through its VAE, so that the rest comes
back a little changed too. The original's pixels are put back where the mask is black.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from safelight.models.inputs import image
from safelight.request import Inputs


def restore(pixels: NDArray[np.uint8], inputs: Inputs) -> NDArray[np.uint8]:
    """`pixels`, uint8 [H, W, 3], with the first input image where its mask is black; grey mixes.

    Of another size, image and mask are resized to that of `pixels`. Raises `GenerationFailed` if an
    input is gone.
    """
    if inputs.mask is None:
        return pixels
    made = Image.fromarray(pixels)
    original = _sized(image(inputs.images[0]), made.size)
    mask = _sized(image(inputs.mask), made.size)
    return np.asarray(Image.composite(made, original, mask))


def _sized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """As the pipelines resize what they are given (diffusers' image processor)."""
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
