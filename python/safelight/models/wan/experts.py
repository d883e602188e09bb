"""The transformers of Wan: one, or one for much and one for little noise.

Sessions that have the same one before them share a forward with a row for each half of each, and
every sample then takes its own sampler's step. With CFG parallelism the halves are on different
ranks, and every rank takes every sampler's step with both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from safelight.models.plans import plan_of
from safelight.models.wan.sessions import WanSession
from safelight.parallel.guidance import Guidance
from safelight.parallel.mesh import Mesh
from safelight.parallel.sequence import SequenceParallel


class Expert:
    """One transformer, and the steps taken with it."""

    def __init__(self, transformer: Any, mesh: Mesh) -> None:
        self.transformer = transformer
        self._guidance = Guidance(mesh)
        plan = plan_of(type(transformer).__name__)
        self._sequence = SequenceParallel.apply(transformer, mesh, plan)
        # Asking a module for its dtype walks all of it: 0.7 ms, too much for every step.
        self.dtype = transformer.dtype

    def step(self, batch: Sequence[WanSession]) -> None:
        """Advance every session of `batch` by one step."""
        if len(batch) == 1:
            self._step_alone(batch[0])
        else:
            self._step_together(batch)

    def _step_alone(self, session: WanSession) -> None:
        """As the pipelines do it: conditional and unconditional forwards apart."""
        latents = session.input.to(self.dtype)
        timestep = session.level.unsqueeze(0)
        known = session.conditioning
        positive, negative, vision = known.positive, known.negative, known.vision
        if negative is None:
            noise = self._forward("cond", latents, timestep, positive, vision)
        else:
            if self._guidance.split:
                name, text = (
                    ("uncond", negative) if self._guidance.unconditional else ("cond", positive)
                )
                mine = self._forward(name, latents, timestep, text, vision)
                noise, unguided = self._guidance.exchange(mine)
            else:
                noise = self._forward("cond", latents, timestep, positive, vision)
                unguided = self._forward("uncond", latents, timestep, negative, vision)
            noise = unguided + session.scale * (noise - unguided)
        session.advance(noise)

    def _step_together(self, batch: Sequence[WanSession]) -> None:
        conditional, unconditional = self._predict(batch)
        for session, noise, base in zip(batch, conditional, unconditional, strict=True):
            if base is not None:
                noise = base + session.scale * (noise - base)
            session.advance(noise)

    def _predict(
        self, batch: Sequence[WanSession]
    ) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor | None]]:
        """Both predictions of each; the unconditional one is None for the unguided."""
        positive = [s.conditioning.positive for s in batch]
        negative = [s.conditioning.negative for s in batch]
        guided = [text is not None for text in negative]
        if self._guidance.split and any(guided):
            # The unguided ride along in the other half, as both must have one shape to be
            # exchanged; nobody looks at them there.
            other = [p if n is None else n for p, n in zip(positive, negative, strict=True)]
            mine = self._rows(batch, other if self._guidance.unconditional else positive)
            noise, base = (half.split(1) for half in self._guidance.exchange(mine))
            return noise, [b if g else None for b, g in zip(base, guided, strict=True)]
        texts = positive + [n for n in negative if n is not None]
        rows = self._rows(batch, texts, [i for i, g in enumerate(guided) if g]).split(1)
        rest = iter(rows[len(batch) :])
        return rows[: len(batch)], [next(rest) if g else None for g in guided]

    def _rows(
        self,
        sessions: Sequence[WanSession],
        texts: Sequence[torch.Tensor],
        again: Sequence[int] = (),
    ) -> torch.Tensor:
        """One forward with a row for each session, those whose numbers are in `again` once more,
        and its text."""
        latents = [s.input for s in sessions]
        levels = [s.level for s in sessions]
        vision = [s.conditioning.vision for s in sessions]
        pictures = [p for p in (*vision, *(vision[i] for i in again)) if p is not None]
        return self._forward(
            "batch",
            torch.cat([*latents, *(latents[i] for i in again)]).to(self.dtype),
            torch.stack([*levels, *(levels[i] for i in again)]),
            torch.cat(list(texts)),
            torch.cat(pictures) if pictures else None,
        )

    def _forward(
        self,
        context: str,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        vision: torch.Tensor | None,
    ) -> torch.Tensor:
        patch = self.transformer.config.patch_size
        self._sequence.prepare(
            math.prod(size // p for size, p in zip(latents.shape[2:], patch, strict=True))
        )
        with self.transformer.cache_context(context):
            return self.transformer(
                hidden_states=latents,
                timestep=timestep,
                encoder_hidden_states=text,
                encoder_hidden_states_image=vision,
                return_dict=False,
            )[0]
