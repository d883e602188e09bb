"""The scale of latents: the VAE says how they are spread, the transformer wants them normal."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Scaling(Protocol):
    """Between latents of the VAE and latents of the transformer, in whatever precision they are."""

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """For the transformer."""
        ...

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """For the VAE."""
        ...


class OfAll:
    """One shift and one factor: the VAE of `flux`, `sd3` and `z_image`."""

    def __init__(self, vae: Any) -> None:
        self._shift = vae.config.shift_factor
        self._factor = vae.config.scaling_factor

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents - self._shift) * self._factor

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / self._factor + self._shift


class ByChannel:
    """Mean and deviation of every channel: the VAE of `wan` and `qwen_image`, with frames."""

    def __init__(self, vae: Any) -> None:
        shape = (1, vae.config.z_dim, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean).view(shape)
        self._std = torch.tensor(vae.config.latents_std).view(shape)

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents - self._mean.to(latents)) * (1.0 / self._std.to(latents))

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / (1.0 / self._std.to(latents)) + self._mean.to(latents)

    def normal(self, latents: torch.Tensor) -> torch.Tensor:
        """As `scaled`, but divided: other bits, which some pipelines have."""
        return (latents - self._mean.to(latents)) / self._std.to(latents)
