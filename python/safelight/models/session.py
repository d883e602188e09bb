"""What the sessions of all families have: tensors of one sample, and a sampler of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from safelight.request import SampleSpec


@dataclass(kw_only=True)
class Denoising:
    """One sample between its encode and its release: a `Session` on a diffusers sampler."""

    spec: SampleSpec
    latents: torch.Tensor
    scheduler: Any
    """This sample's own copy, its timesteps set."""
    timesteps: torch.Tensor
    index: int = 0
    """Denoising steps done."""

    @property
    def steps(self) -> int:
        """Denoising steps in all."""
        return len(self.timesteps)

    @property
    def timestep(self) -> torch.Tensor:
        """Of the next step; a scalar."""
        return self.timesteps[self.index]

    def advance(self, noise: torch.Tensor) -> None:
        """Take the sampler's step with the prediction `noise`, shaped as the latents."""
        self.latents = self.scheduler.step(noise, self.timestep, self.latents, return_dict=False)[0]
        self.index += 1
