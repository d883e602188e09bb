"""The scale of Wan's latents: the VAE says how they are distributed, the transformer wants them
normal."""

from __future__ import annotations

from typing import Any

import torch


class Scaling:
    """Between latents of the VAE and latents of the transformer, in whatever precision they are."""

    def __init__(self, vae: Any) -> None:
        shape = (1, vae.config.z_dim, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean).view(shape)
        self._std = torch.tensor(vae.config.latents_std).view(shape)

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """For the transformer."""
        return (latents - self._mean.to(latents)) * (1.0 / self._std.to(latents))

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """For the VAE."""
        return latents / (1.0 / self._std.to(latents)) + self._mean.to(latents)
