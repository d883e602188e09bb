"""Denoising that starts from an input picture, as diffusers' flow-matching pipelines do it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from safelight.models.inputs import image
from safelight.models.prompts import PromptCache
from safelight.models.strength import first_step
from safelight.parallel.vae import ParallelVae
from safelight.request import Picture


class PictureEncoder:
    """The VAE's encoder; what it makes of a picture is cached by the picture's digest."""

    def __init__(self, vae: ParallelVae, processor: Any, entries: int) -> None:
        """`processor` is the pipeline's own `VaeImageProcessor`."""
        self._vae = vae
        self._processor = processor
        self._cache = PromptCache(entries)

    def encode(self, picture: Picture, width: int, height: int) -> DiagonalGaussianDistribution:
        """Of the picture resized to width x height pixels. All ranks must call it."""

        def compute() -> DiagonalGaussianDistribution:
            pixels = self._processor.preprocess(image(picture), height=height, width=width)
            whole = self._vae.whole
            return self._vae.encode(pixels.to(whole.device, whole.dtype)).latent_dist

        return self._cache.get((picture.digest, width, height), compute)

    def draw(
        self, encoded: DiagonalGaussianDistribution, generator: torch.Generator
    ) -> torch.Tensor:
        """Latents as the transformer has them, [1, channels, rows, columns]."""
        config = self._vae.whole.config
        return (encoded.sample(generator) - config.shift_factor) * config.scaling_factor


def shorten(scheduler: Any, steps: int, strength: float) -> torch.Tensor:
    """The timesteps that `strength` leaves of a schedule of `steps`, where the sampler begins."""
    first = first_step(steps, strength) * scheduler.order
    scheduler.set_begin_index(first)
    timesteps: torch.Tensor = scheduler.timesteps[first:]
    return timesteps
