"""Samples of Wan between encode and release: what the transformer is given of each, by variant."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from safelight.models.session import Denoising


@dataclass(frozen=True)
class Conditioning:
    """What a sample is made from, encoded."""

    positive: torch.Tensor
    """Of the prompt, [1, max_sequence_length, text_dim]."""
    negative: torch.Tensor | None
    """As `positive`; None without guidance."""
    vision: torch.Tensor | None = None
    """The input pictures as the image encoder sees them, [pictures, tokens, image_dim]."""
    known: torch.Tensor | None = None
    """Latents of the input pictures, float32: [1, channels + 4, latent frames, latent height,
    latent width] with a mask of the known frames before them, or [1, channels, 1, latent height,
    latent width] where a mask of tokens says it."""


@dataclass(kw_only=True)
class WanSession(Denoising):
    """Latents are float32 [1, channels, latent frames, latent height, latent width]."""

    conditioning: Conditioning
    switch: int
    """Steps that the first expert takes; the rest are the second's."""

    @property
    def expert(self) -> int:
        """Whose the next step is: 0, or 1 for the one of low noise."""
        return int(self.index >= self.switch)

    @property
    def scale(self) -> float:
        """Of the guidance in the next step."""
        sampling = self.spec.sampling
        if self.expert and sampling.guidance_scale_2 is not None:
            return sampling.guidance_scale_2
        return sampling.guidance_scale

    @property
    def input(self) -> torch.Tensor:
        """What the transformer is given; [1, in_channels, …] as the latents."""
        return self.latents

    @property
    def level(self) -> torch.Tensor:
        """The timestep as the transformer is given it: a scalar, or [tokens]."""
        return self.timestep

    @property
    def result(self) -> torch.Tensor:
        """The latents to decode."""
        return self.latents


@dataclass(kw_only=True)
class GuidedByChannels(WanSession):
    """Known frames are more channels of the input."""

    known: torch.Tensor
    """As `Conditioning.known`, with a mask."""

    @property
    def input(self) -> torch.Tensor:
        return torch.cat([self.latents, self.known], dim=1)


@dataclass(kw_only=True)
class TimedByToken(WanSession):
    """Every token has its own timestep: those of a known frame are at the end of time."""

    free: torch.Tensor
    """float32 [1, 1, latent frames, latent height, latent width]: 0 where the frame is known."""
    known: torch.Tensor | None
    """As `Conditioning.known`, one frame; None if there is none."""

    @property
    def input(self) -> torch.Tensor:
        if self.known is None:
            return self.latents
        return (1 - self.free) * self.known + self.free * self.latents

    @property
    def level(self) -> torch.Tensor:
        return (self.free[0][0][:, ::2, ::2] * self.timestep).flatten()

    @property
    def result(self) -> torch.Tensor:
        return self.input
