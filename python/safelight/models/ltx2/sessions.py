"""What LTX-2 makes of a request, and one sample while it is denoised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from safelight.models import samplers
from safelight.models.session import Denoising


def rows(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One batch of several. A single one stays as it lies in memory, on which its bits depend."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def behind(first: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Tokens [1, first, channels] before [1, rest, channels]; channel by channel in memory, as the
    pipeline packs them."""
    return torch.cat([first.mT, rest.mT], dim=2).mT


@dataclass(frozen=True)
class Text:
    """A prompt as the transformer reads it, one row each."""

    video: torch.Tensor
    """[1, words, video_dim]"""
    sound: torch.Tensor
    """[1, words, sound_dim]"""
    mask: torch.Tensor
    """[1, words]"""


@dataclass(frozen=True)
class Conditioning:
    positive: Text
    negative: Text
    """Always there: the sound is guided even where the video is not."""
    first: torch.Tensor | None
    """The first picture's tokens, float32 [1, tokens of a latent frame, channels]."""


@dataclass(kw_only=True)
class LTX2Session(Denoising):
    """Latents are the video's, packed: float32 [1, tokens, channels], frame after frame."""

    conditioning: Conditioning
    sound: torch.Tensor
    """The sound's latents, float32 [1, latents in time, channels * mel bins]."""
    sound_scheduler: Any
    grid: tuple[int, int, int]
    """Latent frames, rows and columns of the video."""
    places: torch.Tensor
    """Where the video's tokens lie, [1, 3, tokens, 2]."""
    moments: torch.Tensor
    """When the sound's do, [1, 1, latents in time, 2]."""

    @property
    def held(self) -> int:
        """Tokens that are not denoised: those of the first picture."""
        return 0 if self.conditioning.first is None else self.conditioning.first.shape[1]

    def token_timesteps(self) -> torch.Tensor:
        """Of the next step; [tokens], 0 for what is held."""
        free = torch.ones_like(self.latents[0, :, 0])
        free[: self.held] = 0
        return self.timestep * free

    def follow(self, video: torch.Tensor, sound: torch.Tensor) -> None:
        """Take both samplers' steps with these velocities."""
        now, held, before = self.timestep, self.held, self.latents
        moved = self.scheduler.step(
            video[:, held:], now, self.latents[:, held:], return_dict=False
        )[0]
        self.latents = behind(self.latents[:, :held], moved) if held else moved
        self.sound = self.sound_scheduler.step(sound, now, self.sound, return_dict=False)[0]
        self.index += 1
        self.estimate = None
        if self.preview_due:
            clean = samplers.clean(self.scheduler, video[:, held:], before[:, held:], now)
            self.estimate = behind(before[:, :held], clean) if held else clean
