"""Input pictures of Wan: the first frame of the video, or its first and its last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.wan.pipeline_wan_i2v import retrieve_latents

from safelight.models.inputs import image
from safelight.models.pictures import fitted
from safelight.models.prompts import PromptCache
from safelight.models.scaling import Scaling
from safelight.parallel.vae import ParallelVae
from safelight.request import Picture, Sampling

KEPT = 4
"""Videos whose known frames are kept: as latents they have 24 MB at 1280x720 with 81 frames, so
that the samples of one job share them, and little more."""


class Pictures:
    """What the transformers are told of the input pictures."""

    def __init__(
        self, pipeline: Any, vae: ParallelVae, scaling: Scaling, device: torch.device, entries: int
    ) -> None:
        self._pipeline = pipeline
        self._vae = vae
        self._scaling = scaling
        self._device = device
        self._visions = PromptCache(entries)
        self._latents = PromptCache(min(entries, KEPT))

    def vision(self, pictures: Sequence[Picture], dtype: torch.dtype) -> torch.Tensor:
        """As the image encoder sees them, [pictures, tokens, image_dim]."""

        def compute() -> torch.Tensor:
            images = [image(picture) for picture in pictures]
            seen: torch.Tensor = self._pipeline.encode_image(images, self._device)
            return seen.to(dtype)

        return self._visions.get(_digests(pictures), compute)

    def frame(self, pictures: Sequence[Picture], size: Sampling) -> torch.Tensor:
        """Latents of the first picture, float32 [1, channels, 1, latent height, latent width]."""
        (first,) = pictures

        def compute() -> torch.Tensor:
            return self._encoded(self._pixels(first, size).unsqueeze(2))

        return self._latents.get((first.digest, size.height, size.width), compute)

    def video(self, pictures: Sequence[Picture], size: Sampling) -> torch.Tensor:
        """Latents of a video that is grey where it is not known, after a mask of the known frames:
        float32 [1, time + channels, latent frames, latent height, latent width], where `time` is
        the number of frames behind one of latents."""
        key = (_digests(pictures), size.num_frames, size.height, size.width)
        return self._latents.get(key, lambda: self._masked(pictures, size))

    def _masked(self, pictures: Sequence[Picture], size: Sampling) -> torch.Tensor:
        first, *last = (self._pixels(picture, size) for picture in pictures)
        video = first.new_zeros(1, 3, size.num_frames, size.height, size.width)
        video[:, :, 0] = first
        if last:
            video[:, :, -1] = last[0]
        latents = self._encoded(video)
        time = self._pipeline.vae_scale_factor_temporal
        mask = latents.new_zeros(1, time, *latents.shape[2:])
        mask[:, :, 0] = 1  # the first frame stands alone, as many times as others are together
        if last:
            mask[:, -1, -1] = 1
        return torch.cat([mask, latents], dim=1)

    def _pixels(self, picture: Picture, size: Sampling) -> torch.Tensor:
        """float32 [1, 3, height, width] in [-1, 1]"""
        pixels = fitted(self._pipeline.video_processor, picture, size)
        return pixels.to(self._device, dtype=torch.float32)

    def _encoded(self, video: torch.Tensor) -> torch.Tensor:
        vae = self._vae.whole
        posterior = self._vae.encode(video.to(vae.device, vae.dtype))
        latents = retrieve_latents(posterior, sample_mode="argmax")
        return self._scaling.scaled(latents.to(self._device, torch.float32))


def _digests(pictures: Sequence[Picture]) -> tuple[str, ...]:
    return tuple(picture.digest for picture in pictures)
