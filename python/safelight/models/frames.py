"""Frames of samples, from the VAE's pixels: rounded as diffusers rounds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy as np

    from safelight.models.family import Frames


def of_pictures(processor: Any, pixels: torch.Tensor) -> Sequence[Frames]:
    """Of [samples, 3, height, width], with the pipeline's `image_processor`."""
    return rounded(processor.postprocess(pixels, output_type="np")[:, None])


def of_videos(processor: Any, pixels: torch.Tensor) -> Sequence[Frames]:
    """Of [samples, 3, frames, height, width], with the pipeline's `video_processor`."""
    return rounded(processor.postprocess_video(pixels, output_type="np"))


def one_of(latents: torch.Tensor) -> torch.Tensor:
    """The middle latent frame alone, [samples, channels, 1, rows, columns], to be decoded as a
    picture; what has no frames, as it is."""
    if latents.ndim < 5:
        return latents
    middle = latents.shape[2] // 2
    return latents[:, :, middle : middle + 1]


def rounded(frames: np.ndarray) -> Sequence[Frames]:
    """[samples, frames, height, width, 3] in [0, 1]"""
    return list((frames * 255).round().astype("uint8"))
