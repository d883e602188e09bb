"""What all FLUX.1 pipelines share: diffusers' own parts, called one step at a time.

With a batch of one this is the pipeline's `__call__` line by line, hence its bits. In a larger
batch every row of the one forward has its own timestep and guidance, and every sample then takes
its own sampler's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import retrieve_timesteps

from safelight.cache.first_block import StepCache
from safelight.config import EngineConfig
from safelight.models import halves, samplers
from safelight.models.base import DiffusersFamily, split
from safelight.models.pictures import PictureEncoder
from safelight.models.scaling import OfAll
from safelight.models.session import Repainting
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec


@dataclass(frozen=True)
class Words:
    """What the two text encoders make of a prompt."""

    text: torch.Tensor
    """T5's embeddings, [1, max_sequence_length, text_dim]."""
    pooled: torch.Tensor
    """CLIP's, [1, pooled_dim]."""


@dataclass(frozen=True)
class Conditioning:
    """What a sample is made from."""

    positive: Words
    negative: Words | None
    """None without true guidance."""
    pictures: tuple[Any, ...] = ()
    """What the VAE makes of the input pictures: distributions of latents, [1, channels, rows,
    columns] each."""


@dataclass(kw_only=True)
class FluxSession(Repainting):
    """Latents are packed: [1, tokens, 4 * channels]; a token is 2x2 latents."""

    conditioning: Conditioning
    image_ids: torch.Tensor
    """Positions of the tokens, [tokens + reference tokens, 3]."""
    guidance: torch.Tensor | None
    """float32 [1]; None for a transformer without embedded guidance."""
    references: torch.Tensor | None = None
    """Tokens that the transformer sees after those of the latents, [1, reference tokens, 4 *
    channels]."""
    channels: torch.Tensor | None = None
    """More channels of the latents' tokens, [1, tokens, more channels]."""

    @property
    def inputs(self) -> torch.Tensor:
        """What the transformer sees."""
        seen = self.latents
        if self.references is not None:
            seen = torch.cat([seen, self.references], dim=1)
        if self.channels is not None:
            seen = torch.cat([seen, self.channels], dim=2)
        return seen


class FluxBase(DiffusersFamily):
    """A loaded FLUX.1 pipeline, but for how its samples begin."""

    def __init__(self, pipeline: Any, mesh: Mesh, config: EngineConfig) -> None:
        super().__init__(pipeline, mesh, config)
        self._cache = StepCache.apply(self.transformer, mesh, config.model)
        self._sequence = split(self.transformer, mesh)
        self._scaling = OfAll(pipeline.vae)
        self._pictures = PictureEncoder(self._vae, config.model.prompt_cache_entries)

    # -------------------------------------------------------------------------- text and pictures

    def encode(self, sample: SampleSpec) -> Conditioning:
        sampling = sample.sampling
        length, negative = sampling.max_sequence_length, sampling.negative_prompt
        guided = (sampling.true_cfg_scale or 1) > 1 and negative != ""
        return Conditioning(
            positive=self._words(sample.prompt, length),
            negative=self._words(negative, length) if guided else None,
            pictures=self._seen(sample) if sample.inputs.images else (),
        )

    def _words(self, prompt: str, length: int) -> Words:
        def embed() -> tuple[torch.Tensor, torch.Tensor]:
            text, pooled, _ = self.pipeline.encode_prompt(
                prompt=prompt, prompt_2=None, device=self.device, max_sequence_length=length
            )
            return text.to(self.dtype), pooled.to(self.dtype)

        return Words(*self._prompts.get((prompt, length), embed))

    def _seen(self, sample: SampleSpec) -> tuple[Any, ...]:
        """What the VAE makes of the sample's pictures."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------ the beginning

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> FluxSession:
        raise NotImplementedError

    def _session(
        self, sample: SampleSpec, conditioning: Conditioning, scheduler: Any, **state: Any
    ) -> FluxSession:
        """One that takes the steps which `strength` leaves; `scheduler` begins there."""
        return FluxSession(
            spec=sample,
            conditioning=conditioning,
            guidance=self._embedded(sample),
            scheduler=scheduler,
            timesteps=samplers.left(scheduler, sample.sampling),
            **state,
        )

    def _embedded(self, sample: SampleSpec) -> torch.Tensor | None:
        """Guidance that is an input of the transformer, if it has that."""
        if not self.transformer.config.guidance_embeds:
            return None
        return torch.full([1], sample.sampling.guidance_scale, device=self.device)

    def _scheduler(self, sample: SampleSpec) -> Any:
        """A sampler of its own; the larger the image, the more its noise levels are shifted."""
        sampling = sample.sampling
        scheduler = samplers.own(self.pipeline.scheduler, sampling.flow_shift)
        side, steps = 2 * self.pipeline.vae_scale_factor, sampling.num_inference_steps
        tokens = (sampling.height // side) * (sampling.width // side)
        mu = samplers.mu(scheduler.config, tokens)
        own_sigmas = scheduler.config.get("use_flow_sigmas", False)
        sigmas = None if own_sigmas else np.linspace(1.0, 1 / steps, steps)
        retrieve_timesteps(scheduler, steps, self.device, sigmas=sigmas, mu=mu)
        return scheduler

    # -------------------------------------------------------------------------------------- steps

    def step(self, batch: Sequence[FluxSession]) -> None:
        scales = [session.spec.sampling.true_cfg_scale or 1.0 for session in batch]
        halves.step(self._guidance, self._forward, batch, scales)

    def _forward(
        self, context: str, sessions: Sequence[FluxSession], words: Sequence[Words]
    ) -> torch.Tensor:
        """One forward with a row for each session: all are of one size."""
        inputs = torch.cat([s.inputs for s in sessions])
        timesteps = torch.stack([s.timestep for s in sessions]).to(inputs.dtype)
        text = torch.cat([w.text for w in words])
        guidance = [s.guidance for s in sessions if s.guidance is not None]
        self._sequence.prepare(inputs.shape[1], text.shape[1])
        with self._cache.context(context, sessions):
            noise = self.transformer(
                hidden_states=inputs,
                timestep=timesteps / 1000,
                guidance=torch.cat(guidance) if guidance else None,
                pooled_projections=torch.cat([w.pooled for w in words]),
                encoder_hidden_states=text,
                # Words have no positions: `encode_prompt` gives zeros as well.
                txt_ids=text.new_zeros(text.shape[1], 3),
                img_ids=sessions[0].image_ids,
                return_dict=False,
            )[0]
        tokens: torch.Tensor = noise[:, : sessions[0].latents.shape[1]]
        return tokens

    # -------------------------------------------------------------------------------------- the end

    def _stacked(self, sessions: Sequence[FluxSession]) -> torch.Tensor:
        size = sessions[0].spec.sampling
        packed = super()._stacked(sessions)
        scale = self.pipeline.vae_scale_factor
        latents: torch.Tensor = self.pipeline._unpack_latents(
            packed, size.height, size.width, scale
        )
        return latents
