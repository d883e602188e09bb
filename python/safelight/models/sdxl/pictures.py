"""Input pictures and masks as SDXL's pipelines take them: pixels, encodings, latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionXLInpaintPipeline

from safelight.models.pictures import fitted
from safelight.models.prompts import PromptCache
from safelight.parallel.vae import ParallelVae
from safelight.request import SampleSpec


@dataclass(frozen=True)
class Pictured:
    """What is computed of the input picture and the mask."""

    picture: Any
    """What the VAE encodes the picture to; None if nothing looks at it."""
    masked: Any
    """The same, with what is to be repainted left grey; None if the UNet does not see it."""
    mask: torch.Tensor | None
    """float32 [1, 1, height, width]: 1 is repainted, 0 is kept."""


class Pictures:
    """Encodes pictures; what it makes of them is cached by their digests."""

    def __init__(
        self,
        pipeline: StableDiffusionXLInpaintPipeline,
        vae: ParallelVae,
        dtype: torch.dtype,
        entries: int,
    ) -> None:
        """`dtype` is that of the UNet."""
        self._images = pipeline.image_processor
        self._masks = pipeline.mask_processor
        self._vae = vae
        self._dtype = dtype
        self.cache = PromptCache(entries)

    def encode(self, sample: SampleSpec, *, needs_clean: bool, sees_mask: bool) -> Pictured | None:
        """None without a picture. All ranks must call it alike.

        `needs_clean`: whether the picture itself is encoded; `sees_mask`: whether the UNet is
        shown mask and masked picture.
        """
        if not sample.inputs.images:
            return None
        size = (sample.sampling.width, sample.sampling.height)
        digest, mask = sample.inputs.images[0].digest, self._mask(sample)
        picture = masked = None
        if needs_clean:
            picture = self._encoded((digest, size), lambda: self._pixels(sample))
        if sees_mask and mask is not None and sample.inputs.mask is not None:
            visible = mask < 0.5
            key = (digest, sample.inputs.mask.digest, size)
            masked = self._encoded(key, lambda: self._pixels(sample) * visible)
        return Pictured(picture, masked, mask)

    def _pixels(self, sample: SampleSpec) -> torch.Tensor:
        """float32 [1, 3, height, width] in [-1, 1]"""
        return fitted(self._images, sample.inputs.images[0], sample.sampling)

    def _mask(self, sample: SampleSpec) -> torch.Tensor | None:
        if sample.inputs.mask is None:
            return None
        return fitted(self._masks, sample.inputs.mask, sample.sampling)

    def _encoded(self, key: object, pixels: Callable[[], torch.Tensor]) -> Any:
        def compute() -> Any:
            vae = self._vae.whole
            # The pipelines cast to the UNet's precision first, then to that of the encoder.
            cast = pixels().to(vae.device, self._dtype)
            with _upcast(vae):
                return self._vae.encode(cast.to(vae.dtype))

        return self.cache.get(key, compute)


@contextmanager
def _upcast(vae: Any) -> Iterator[None]:
    """The VAE in float32 if it overflows in less."""
    before = vae.dtype
    if not vae.config.force_upcast or before == torch.float32:
        yield
        return
    vae.to(torch.float32)
    try:
        yield
    finally:
        vae.to(before)
