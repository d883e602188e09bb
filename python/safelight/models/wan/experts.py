"""The transformers of Wan: one, or one for much and one for little noise.

Sessions that have the same one before them share a forward with a row for each half of each, and
every sample then takes its own sampler's step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from safelight.cache.first_block import StepCache
from safelight.config import ModelConfig
from safelight.models import halves
from safelight.models.base import split
from safelight.models.wan.sessions import WanSession
from safelight.parallel.guidance import Guidance
from safelight.parallel.mesh import Mesh


class Expert:
    """One transformer, and the steps taken with it."""

    def __init__(self, transformer: Any, mesh: Mesh, model: ModelConfig) -> None:
        self.transformer = transformer
        self._guidance = Guidance(mesh)
        self._cache = StepCache.apply(transformer, mesh, model)
        self._sequence = split(transformer, mesh)
        # Asking a module for its dtype walks all of it: 0.7 ms, too much for every step.
        self.dtype = transformer.dtype

    def step(self, batch: Sequence[WanSession]) -> None:
        """Advance every session of `batch` by one step."""
        # Both halves of a sample have the same.
        inputs = {session.spec.id: session.input for session in batch}
        levels = {session.spec.id: session.level for session in batch}

        def forward(
            context: str, sessions: Sequence[WanSession], texts: Sequence[torch.Tensor]
        ) -> torch.Tensor:
            names = [session.spec.id for session in sessions]
            visions = [session.conditioning.vision for session in sessions]
            pictures = [vision for vision in visions if vision is not None]
            with self._cache.context(context, sessions):
                return self._forward(
                    torch.cat([inputs[name] for name in names]).to(self.dtype),
                    torch.stack([levels[name] for name in names]),
                    torch.cat(list(texts)),
                    torch.cat(pictures) if pictures else None,
                )

        halves.step(self._guidance, forward, batch, [session.scale for session in batch])

    def _forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        vision: torch.Tensor | None,
    ) -> torch.Tensor:
        """One forward with a row for each session and its text, shaped as the sessions' latents."""
        patch = self.transformer.config.patch_size
        self._sequence.prepare(
            math.prod(size // p for size, p in zip(latents.shape[2:], patch, strict=True))
        )
        noise: torch.Tensor = self.transformer(
            hidden_states=latents,
            timestep=timestep,
            encoder_hidden_states=text,
            encoder_hidden_states_image=vision,
            return_dict=False,
        )[0]
        return noise
