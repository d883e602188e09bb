"""One sample that a UNet denoises, and what the rows of its forwards have beside the latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from safelight.models.session import Kept, Repainting


@dataclass(frozen=True)
class Half:
    """What one row of a forward is conditioned on."""

    words: torch.Tensor
    """Of all text encoders, [1, 77, text_dim]."""
    pooled: torch.Tensor
    """Of the last text encoder, [1, projection_dim]."""
    time_ids: torch.Tensor
    """Sizes and crop, or an aesthetic score, [1, 5 or 6]."""


@dataclass(frozen=True)
class Halves:
    positive: Half
    negative: Half | None
    """None without guidance."""


@dataclass(kw_only=True)
class SDXLSession(Repainting):
    """Latents are [1, 4, latent rows, latent columns], in the UNet's precision.

    A UNet that sees the mask needs nothing to be put back.
    """

    conditioning: Halves
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the sampler's `step`: where it draws noise, the sample's own generator."""
    embedded_guidance: torch.Tensor | None = None
    """[1, time_cond_proj_dim]; None for UNets without it."""
    beside: torch.Tensor | None = None
    """Mask and masked picture for a UNet that sees them, [1, 5, latent rows, latent columns]."""

    def scaled(self) -> torch.Tensor:
        """What the UNet sees in the next step. Samplers count: once a step."""
        latents: torch.Tensor = self.scheduler.scale_model_input(self.latents, self.timestep)
        return latents if self.beside is None else torch.cat([latents, self.beside], dim=1)

    def _sampled(self, noise: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.scheduler.step(
            noise, self.timestep, self.latents, **self.options, return_dict=False
        )[0]
        return latents

    def _noised(self, kept: Kept, timestep: torch.Tensor) -> torch.Tensor:
        noised: torch.Tensor = self.scheduler.add_noise(kept.clean, kept.noise, timestep)
        return noised
