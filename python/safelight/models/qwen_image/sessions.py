"""Samples of Qwen-Image between encode and release, and what the VAE makes of their pictures."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from safelight.models.prompts import PromptCache
from safelight.models.session import Denoising
from safelight.parallel.vae import ParallelVae

Grids = list[tuple[int, int, int]]
"""(1, rows, columns) of tokens, one a picture."""


@dataclass(frozen=True)
class Conditioning:
    """Prompt embeddings, [1, words, text_dim] each; with the pictures, where the model sees them.

    Lengths are those of the prompts.
    """

    positive: torch.Tensor
    negative: torch.Tensor | None
    """None without guidance."""


@dataclass(kw_only=True)
class QwenImageSession(Denoising):
    """Latents are packed: [1, tokens, 4 * channels]; a token is 2x2 latents."""

    conditioning: Conditioning
    grids: Grids
    """Of the output, then of each picture that is seen."""
    seen: torch.Tensor | None = None
    """Latents of those pictures, packed as the output's; None if there are none."""

    @property
    def input(self) -> torch.Tensor:
        """What the transformer is given: [1, tokens of all grids, 4 * channels]."""
        return self.latents if self.seen is None else torch.cat([self.latents, self.seen], dim=1)


@dataclass(kw_only=True)
class InpaintingSession(QwenImageSession):
    """What the mask keeps is put back after every step, as noisy as the rest."""

    mask: torch.Tensor
    """1 is repainted; packed as the latents, as the others are."""
    original: torch.Tensor
    noise: torch.Tensor

    def advance(self, noise: torch.Tensor) -> None:
        super().advance(noise)
        kept = self.original
        if self.index < self.steps:
            kept = self.scheduler.scale_noise(kept, self.timestep[None], self.noise)
        self.latents = (1 - self.mask) * kept + self.mask * self.latents


class PictureEncoder:
    """The VAE's encoder; what it makes of a picture is computed once."""

    def __init__(self, vae: ParallelVae, entries: int) -> None:
        self._vae = vae
        self._cache = PromptCache(entries)
        config = vae.whole.config
        shape = (1, config.z_dim, 1, 1, 1)
        self._mean = torch.tensor(config.latents_mean).view(shape)
        self._std = torch.tensor(config.latents_std).view(shape)

    def encode(
        self, key: Hashable, pixels: Callable[[], torch.Tensor]
    ) -> DiagonalGaussianDistribution:
        """Of pixels [1, 3, height, width] in [-1, 1]. All ranks must call it."""

        def compute() -> DiagonalGaussianDistribution:
            whole = self._vae.whole
            frame = pixels().unsqueeze(2).to(whole.device, whole.dtype)
            return self._vae.encode(frame).latent_dist

        return self._cache.get(key, compute)

    def clean(self, encoded: DiagonalGaussianDistribution) -> torch.Tensor:
        """The likeliest latents, as the transformer sees them: [1, channels, 1, rows, columns]."""
        latents = encoded.mode()
        return (latents - self._mean.to(latents)) / self._std.to(latents)

    def draw(
        self, encoded: DiagonalGaussianDistribution, generator: torch.Generator
    ) -> torch.Tensor:
        """Random latents, to start from: [1, channels, 1, rows, columns]."""
        latents = encoded.sample(generator)
        return (latents - self._mean.to(latents)) * (1.0 / self._std.to(latents))

    def restored(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the VAE has them, from those of the transformer."""
        return latents / (1.0 / self._std.to(latents)) + self._mean.to(latents)
