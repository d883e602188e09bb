"""What the sessions of all families have: tensors of one sample, and a sampler of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from safelight.models import samplers
from safelight.request import SampleSpec


def preview_steps(steps: int, count: int) -> frozenset[int]:
    """How many steps are done when a preview is made: evenly spaced, and never the last."""
    count = min(count, steps - 1)
    return frozenset(round(steps * (k + 1) / (count + 1)) for k in range(count))


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
    estimate: torch.Tensor | None = None
    """What the latents will become, as the last step had it, where a preview is due."""
    cached: dict[Any, Any] = field(default_factory=dict)
    """What step caches know of it; see `safelight.cache.first_block`."""

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
        before, timestep = self.latents, self.timestep
        self.latents = self._sampled(noise)
        self.index += 1
        self.estimate = None
        if self.preview_due:
            self.estimate = samplers.clean(self.scheduler, noise, before, timestep)

    @property
    def preview_due(self) -> bool:
        """Whether, after as many steps as are done, a picture of the estimate is wanted."""
        wanted = self.spec.previews
        return wanted > 0 and self.index in preview_steps(self.steps, wanted)

    def _sampled(self, noise: torch.Tensor) -> torch.Tensor:
        step: tuple[torch.Tensor, ...] = self.scheduler.step(
            noise, self.timestep, self.latents, return_dict=False
        )
        return step[0]


@dataclass(frozen=True)
class Kept:
    """What inpainting keeps of a picture; all shaped as the latents, or so that it fits them."""

    clean: torch.Tensor
    """Latents of the picture."""
    noise: torch.Tensor
    mask: torch.Tensor
    """1 is repainted, 0 is kept."""


@dataclass(kw_only=True)
class Repainting(Denoising):
    """What the mask keeps, if there is one, is put back after every step.

    The sessions of `flux`, `qwen_image`, `sd3` and `sdxl`, whose transformers know of no mask.
    """

    kept: Kept | None = None

    def advance(self, noise: torch.Tensor) -> None:
        super().advance(noise)
        if self.kept is not None:
            around, mask = self.kept.clean, self.kept.mask
            if self.index < self.steps:
                around = self._noised(self.kept, self.timestep.reshape(1))
            self.latents = (1 - mask) * around + mask * self.latents

    def _noised(self, kept: Kept, timestep: torch.Tensor) -> torch.Tensor:
        """The picture with as much noise as the step of `timestep`, [1], expects."""
        noised: torch.Tensor = self.scheduler.scale_noise(kept.clean, timestep, kept.noise)
        return noised
