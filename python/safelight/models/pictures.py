"""Input pictures as diffusers' pipelines take them: pixels, and what the VAE encodes them to."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from safelight.models.inputs import image
from safelight.models.prompts import PromptCache
from safelight.parallel.vae import ParallelVae
from safelight.request import Picture, Sampling


class PictureEncoder:
    """The VAE's encoder; what it makes of pixels is computed once.

    Of `flux`, `flux2`, `qwen_image`, `sd3` and `z_image`. What is drawn from it takes random
    numbers, and is each sample's own.
    """

    def __init__(self, vae: ParallelVae, entries: int) -> None:
        self._vae = vae
        self.cache = PromptCache(entries)

    def encode(
        self, key: Hashable, pixels: Callable[[], torch.Tensor]
    ) -> DiagonalGaussianDistribution:
        """Of pixels in [-1, 1], [1, 3, (1,) height, width]; `key` says all that they depend on.

        All ranks must call it.
        """

        def compute() -> DiagonalGaussianDistribution:
            whole = self._vae.whole
            return self._vae.encode(pixels().to(whole.device, whole.dtype)).latent_dist

        return self.cache.get(key, compute)

    def fitted(
        self, processor: Any, picture: Picture, size: Sampling
    ) -> DiagonalGaussianDistribution:
        """Of the picture brought to the size of the output. All ranks must call it."""
        key = (picture.digest, size.width, size.height)
        return self.encode(key, lambda: fitted(processor, picture, size))


def fitted(processor: Any, picture: Picture, size: Sampling) -> torch.Tensor:
    """What the pipeline's `processor` makes of a picture or a mask at the size of the output.

    float32 [1, channels, height, width]
    """
    pixels: torch.Tensor = processor.preprocess(
        image(picture), height=size.height, width=size.width
    )
    return pixels
