"""What a pipeline's call returns, as a family delivers it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin

from safelight.errors import GenerationFailed
from safelight.models.family import Clip
from safelight.models.generic.signature import RESULTS

if TYPE_CHECKING:
    from safelight.models.family import Frames

SOUNDS = ("audio", "sound")
RATES = ("output_sampling_rate", "sampling_rate", "sample_rate")
"""Keys of the configuration of the component that makes the sound."""


def made_of(output: Mapping[str, Any], pipeline: DiffusionPipeline) -> Frames | Clip:
    """The frames of the one sample, and its sound if there is any.

    Raises `GenerationFailed` if they cannot be delivered.
    """
    name = next((name for name in RESULTS if name in output), None)
    if name is None:
        raise GenerationFailed(f"The pipeline returned {', '.join(output)} instead of pictures.")
    frames = _frames(output[name])
    sound = next((output[name] for name in SOUNDS if output.get(name) is not None), None)
    rate = None if sound is None else _rate(pipeline)
    if rate is None:
        return frames
    return Clip(frames, _sound(sound), rate)


def _frames(value: Any) -> Frames:
    """uint8 [T, H, W, 3] of the first sample: arrays in [0, 1], or lists of pictures."""
    pixels = np.asarray(value)
    while pixels.ndim > 4:  # the batch of videos, as arrays or as lists of frames
        pixels = pixels[0]
    if pixels.ndim == 3:
        pixels = pixels[None]
    if pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise GenerationFailed(f"The pipeline made an array {list(pixels.shape)}, not RGB frames.")
    if pixels.dtype == np.uint8:
        return pixels
    if not np.isfinite(pixels).all():
        raise GenerationFailed(
            "The frames are not finite; the model overflowed in this precision.", code="non_finite"
        )
    rounded: Frames = (pixels * 255).round().astype("uint8")
    return rounded


def _sound(value: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[samples, channels] of the first sample, from [batch, (channels,) samples]."""
    first = torch.as_tensor(value)[0].float().cpu().numpy()
    return np.atleast_2d(first).T.clip(-1, 1)


def _rate(pipeline: DiffusionPipeline) -> int | None:
    """Samples per second, as a component says; None if none does."""
    for component in pipeline.components.values():
        if isinstance(component, ModelMixin):
            for key in RATES:
                if key in component.config:
                    return int(component.config[key])
    return None
