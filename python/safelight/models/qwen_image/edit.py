"""Qwen-Image-Edit, whose transformer sees the input pictures beside the noise.

With a batch of one this is `QwenImageEditPipeline.__call__`, with a mask
`QwenImageEditInpaintPipeline.__call__`, with several pictures `QwenImageEditPlusPipeline.__call__`.
The text encoder sees the pictures too, so embeddings depend on both.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import QwenImageEditInpaintPipeline

from safelight.models.inputs import image
from safelight.models.qwen_image import spec
from safelight.models.qwen_image.family import QwenImageFamily
from safelight.models.qwen_image.sessions import Grids, QwenImageSession
from safelight.request import Picture, SampleSpec


class QwenImageEditFamily(QwenImageFamily):
    """A loaded Qwen-Image-Edit pipeline: one picture, and inpainting."""

    inpainting = QwenImageEditInpaintPipeline

    # -------------------------------------------------------------------------- conditioning

    def _embed(self, sample: SampleSpec, text: str) -> torch.Tensor:
        digests = [picture.digest for picture in sample.inputs.images]

        def compute() -> torch.Tensor:
            embeds, _ = self.pipeline.encode_prompt(
                prompt=text, image=self._shown(sample), device=self.device
            )
            return embeds.to(self.dtype)

        return self._prompts.get((text, digests, _size(sample)), compute)

    def _shown(self, sample: SampleSpec) -> Any:
        """What the text encoder is shown."""
        return self._resized(sample.inputs.images[0], _size(sample))

    def _resized(self, picture: Picture, size: tuple[int, int]) -> Any:
        width, height = size
        return self.pipeline.image_processor.resize(image(picture), height, width)

    def _fitted(self, sample: SampleSpec) -> Any:
        return self._shown(sample)

    # ------------------------------------------------------------------------------ beginning

    def _grids(self, sample: SampleSpec) -> Grids:
        return super()._grids(sample) + [self._grid(*size) for size in self._sizes(sample)]

    def _sizes(self, sample: SampleSpec) -> list[tuple[int, int]]:
        """(width, height) at which the VAE encodes the pictures."""
        return [_size(sample)]

    def _begin_inpainting(
        self, mask: Picture, generator: torch.Generator, start: dict[str, Any]
    ) -> QwenImageSession:
        session = super()._begin_inpainting(mask, generator, start)
        session.seen = session.kept.clean if session.kept is not None else None
        return session

    def _begin_with_pictures(
        self, generator: torch.Generator, start: dict[str, Any]
    ) -> QwenImageSession:
        """From noise alone."""
        sample = start["spec"]
        wanted = self._wanted(sample.sampling, generator)
        latents, seen = self.pipeline.prepare_latents(self._encoded(sample), *wanted)
        return QwenImageSession(**start, latents=latents, seen=seen)

    def _encoded(self, sample: SampleSpec) -> Any:
        """Latents of the pictures as `prepare_latents` takes them."""
        (picture,), (size,) = sample.inputs.images, self._sizes(sample)
        return self._latents(picture, size, lambda: self._shown(sample))

    def _latents(self, picture: Picture, size: tuple[int, int], fitted: Any) -> torch.Tensor:
        width, height = size

        def pixels() -> torch.Tensor:
            made: torch.Tensor = self.pipeline.image_processor.preprocess(fitted(), height, width)
            return made.unsqueeze(2)

        encoded = self._pictures.encode((picture.digest, width, height), pixels)
        return self._scaling.normal(encoded.mode())


class QwenImageEditPlusFamily(QwenImageEditFamily):
    """A loaded Qwen-Image-Edit 2509 or later: several pictures."""

    def _shown(self, sample: SampleSpec) -> Any:
        pictures = sample.inputs.images
        return [self._resized(one, spec.scaled(one, spec.CONDITION_AREA)) for one in pictures]

    def _sizes(self, sample: SampleSpec) -> list[tuple[int, int]]:
        return [spec.scaled(picture, spec.AREA) for picture in sample.inputs.images]

    def _encoded(self, sample: SampleSpec) -> Any:
        pairs = zip(sample.inputs.images, self._sizes(sample), strict=True)
        return [self._latents(one, size, lambda one=one: image(one)) for one, size in pairs]


def _size(sample: SampleSpec) -> tuple[int, int]:
    """(width, height) at which the first picture is seen: what is repainted has that size."""
    if sample.inputs.mask is not None:
        return sample.sampling.width, sample.sampling.height
    return spec.scaled(sample.inputs.images[0], spec.AREA)
