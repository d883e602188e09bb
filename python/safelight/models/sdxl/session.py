"""One sample that a UNet denoises, and what the rows of its forwards have beside the latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from safelight.models.session import Denoising


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


@dataclass(frozen=True)
class Kept:
    """What inpainting keeps outside the mask, with a UNet that does not know of it."""

    clean: torch.Tensor
    """Latents of the picture."""
    noise: torch.Tensor
    mask: torch.Tensor
    """[1, 1, latent rows, latent columns]: 1 is repainted, 0 is kept."""


@dataclass(kw_only=True)
class SDXLSession(Denoising):
    """Latents are [1, 4, latent rows, latent columns], in the UNet's precision."""

    conditioning: Halves
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the sampler's `step`: where it draws noise, the sample's own generator."""
    embedded_guidance: torch.Tensor | None = None
    """[1, time_cond_proj_dim]; None for UNets without it."""
    beside: torch.Tensor | None = None
    """Mask and masked picture for a UNet that sees them, [1, 5, latent rows, latent columns]."""
    kept: Kept | None = None

    def scaled(self) -> torch.Tensor:
        """What the UNet sees in the next step. Samplers count: once a step."""
        latents: torch.Tensor = self.scheduler.scale_model_input(self.latents, self.timestep)
        return latents if self.beside is None else torch.cat([latents, self.beside], dim=1)

    def advance(self, noise: torch.Tensor) -> None:
        self.latents = self.scheduler.step(
            noise, self.timestep, self.latents, **self.options, return_dict=False
        )[0]
        self.index += 1
        if self.kept is not None:
            self._keep(self.kept)

    def _keep(self, kept: Kept) -> None:
        """Put the picture back outside the mask, with as much noise as the next step expects."""
        around = kept.clean
        if self.index < self.steps:
            around = self.scheduler.add_noise(around, kept.noise, self.timestep.reshape(1))
        self.latents = (1 - kept.mask) * around + kept.mask * self.latents
