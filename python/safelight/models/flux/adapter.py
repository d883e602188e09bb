"""Flux through the adapter protocol: diffusers' own parts, called one step at a time.

With a batch of one this is `FluxPipeline.__call__` line by line, hence its bits. In a larger batch
every row of the one forward has its own timestep and guidance, and every sample then takes its own
sampler's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

from safelight.config import EngineConfig
from safelight.models.loading import load_pipeline, weight_bytes
from safelight.models.plans import plan_of
from safelight.models.prompts import PromptCache
from safelight.models.samplers import own
from safelight.models.session import Denoising
from safelight.parallel.mesh import Mesh
from safelight.parallel.sequence import SequenceParallel
from safelight.parallel.vae import ParallelVae
from safelight.request import SampleSpec

if TYPE_CHECKING:
    from safelight.models.family import Frames


@dataclass(frozen=True)
class Conditioning:
    """What the two text encoders make of a prompt."""

    text: torch.Tensor
    """T5's embeddings, [1, max_sequence_length, text_dim]."""
    pooled: torch.Tensor
    """CLIP's, [1, pooled_dim]."""


@dataclass(kw_only=True)
class FluxSession(Denoising):
    """Latents are packed: [1, tokens, 4 * channels]; a token is 2x2 latents."""

    conditioning: Conditioning
    image_ids: torch.Tensor
    """Positions of the tokens, [tokens, 3]."""
    guidance: torch.Tensor | None
    """float32 [1]; None for a transformer without embedded guidance."""


class FluxFamily:
    """A loaded FLUX.1 pipeline."""

    def __init__(self, pipeline: FluxPipeline, mesh: Mesh, config: EngineConfig) -> None:
        self.pipeline = pipeline
        self.transformer = pipeline.transformer
        self._first = mesh.rank == 0
        plan = plan_of(type(self.transformer).__name__)
        self._sequence = SequenceParallel.apply(self.transformer, mesh, plan)
        self._vae = ParallelVae(pipeline.vae, mesh, config.parallel.vae_parallel)
        self.device = mesh.device
        # Asking a module for its dtype walks all of it: 0.7 ms, too much for every step.
        self.dtype = self.transformer.dtype
        self._prompts = PromptCache(config.model.prompt_cache_entries)

    def describe(self) -> str:
        return f"{type(self.pipeline).__name__} on {self.device}, {self.dtype}"

    def encode(self, sample: SampleSpec) -> Conditioning:
        prompt, length = sample.prompt, sample.sampling.max_sequence_length

        def embed() -> tuple[torch.Tensor, torch.Tensor]:
            text, pooled, _ = self.pipeline.encode_prompt(
                prompt=prompt, prompt_2=None, device=self.device, max_sequence_length=length
            )
            return text.to(self.dtype), pooled.to(self.dtype)

        return Conditioning(*self._prompts.get((prompt, length), embed))

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> FluxSession:
        sampling, config = sample.sampling, self.transformer.config
        latents, image_ids = self.pipeline.prepare_latents(
            1,
            config.in_channels // 4,
            sampling.height,
            sampling.width,
            conditioning.text.dtype,
            self.device,
            torch.Generator("cpu").manual_seed(sampling.seed),
        )
        guidance = None
        if config.guidance_embeds:
            guidance = torch.full([1], sampling.guidance_scale, device=self.device)
        scheduler = self._scheduler(sampling.num_inference_steps, latents.shape[1])
        return FluxSession(
            spec=sample,
            conditioning=conditioning,
            latents=latents,
            image_ids=image_ids,
            guidance=guidance,
            scheduler=scheduler,
            timesteps=scheduler.timesteps,
        )

    def _scheduler(self, steps: int, tokens: int) -> Any:
        """A sampler of its own for an image of so many tokens; the larger, the more its noise
        levels are shifted."""
        scheduler = own(self.pipeline.scheduler)
        config = scheduler.config
        own_sigmas = config.get("use_flow_sigmas", False)
        mu = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        sigmas = None if own_sigmas else np.linspace(1.0, 1 / steps, steps)
        retrieve_timesteps(scheduler, steps, self.device, sigmas=sigmas, mu=mu)
        scheduler.set_begin_index(0)
        return scheduler

    def step(self, batch: Sequence[FluxSession]) -> None:
        for session, noise in zip(batch, self._predict(batch).split(1), strict=True):
            session.advance(noise)

    def _predict(self, batch: Sequence[FluxSession]) -> torch.Tensor:
        """One forward with a row for each session: all are of one size."""
        latents = torch.cat([s.latents for s in batch])
        timesteps = torch.stack([s.timestep for s in batch]).to(latents.dtype)
        text = torch.cat([s.conditioning.text for s in batch])
        guidance = [s.guidance for s in batch if s.guidance is not None]
        self._sequence.prepare(latents.shape[1], text.shape[1])
        with self.transformer.cache_context("cond"):
            return self.transformer(
                hidden_states=latents,
                timestep=timesteps / 1000,
                guidance=torch.cat(guidance) if guidance else None,
                pooled_projections=torch.cat([s.conditioning.pooled for s in batch]),
                encoder_hidden_states=text,
                # Words have no positions: `encode_prompt` gives zeros as well.
                txt_ids=text.new_zeros(text.shape[1], 3),
                img_ids=batch[0].image_ids,
                return_dict=False,
            )[0]

    def weights(self) -> dict[str, int]:
        return weight_bytes(self.pipeline.components)

    def decodes_together(self, sessions: Sequence[FluxSession]) -> bool:
        return self._vae.splits_decode(self._unpacked(sessions).shape)

    def _unpacked(self, sessions: Sequence[FluxSession]) -> torch.Tensor:
        """[samples, channels, latent height, latent width]"""
        size = sessions[0].spec.sampling
        packed = torch.cat([s.latents for s in sessions])
        scale = self.pipeline.vae_scale_factor
        return self.pipeline._unpack_latents(packed, size.height, size.width, scale)

    def decode(self, sessions: Sequence[FluxSession]) -> Sequence[Frames]:
        vae = self.pipeline.vae
        latents = self._unpacked(sessions).to(vae.device, vae.dtype)
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        pixels = self._vae.decode(latents)
        if not self._first:
            return []
        images = self.pipeline.image_processor.postprocess(pixels, output_type="np")
        return list((images[:, None] * 255).round().astype("uint8"))


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> FluxFamily:
    """This rank's part of the pipeline in `directory`, on its device; safetensors only."""
    return FluxFamily(load_pipeline(FluxPipeline, directory, config, mesh), mesh, config)
