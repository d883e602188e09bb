"""Wan through the adapter protocol: diffusers' own parts, called one step at a time.

With a batch of one this is `WanPipeline.__call__` line by line (conditional and unconditional
forwards apart), hence its bits. In a larger batch all halves of all samples ride in one forward
with a timestep per row, and every sample then takes its own sampler's step. With CFG parallelism
the halves are on different ranks, and every rank takes every sampler's step with both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import WanPipeline

from safelight.config import EngineConfig
from safelight.models.loading import load_pipeline, weight_bytes
from safelight.models.plans import plan_of
from safelight.models.prompts import PromptCache
from safelight.models.samplers import own
from safelight.models.session import Denoising
from safelight.parallel.guidance import Guidance
from safelight.parallel.mesh import Mesh
from safelight.parallel.sequence import SequenceParallel
from safelight.parallel.vae import ParallelVae
from safelight.request import SampleSpec

if TYPE_CHECKING:
    from safelight.models.family import Frames


@dataclass(frozen=True)
class Conditioning:
    """Prompt embeddings, [1, max_sequence_length, text_dim] each."""

    positive: torch.Tensor
    negative: torch.Tensor | None
    """None without guidance."""


@dataclass(kw_only=True)
class WanSession(Denoising):
    """Latents are float32 [1, channels, latent frames, latent height, latent width]."""

    conditioning: Conditioning


class WanFamily:
    """A loaded Wan 2.1 pipeline."""

    def __init__(self, pipeline: WanPipeline, mesh: Mesh, config: EngineConfig) -> None:
        self.pipeline = pipeline
        self.transformer = pipeline.transformer
        self._first = mesh.rank == 0
        self._guidance = Guidance(mesh)
        plan = plan_of(type(self.transformer).__name__)
        self._sequence = SequenceParallel.apply(self.transformer, mesh, plan)
        self._vae = ParallelVae(pipeline.vae, mesh, config.parallel.vae_parallel)
        self.device = mesh.device
        # Asking a module for its dtype walks all of it: 0.7 ms, too much for every step.
        self.dtype = self.transformer.dtype
        self._text_dtype = pipeline.text_encoder.dtype
        self._prompts = PromptCache(config.model.prompt_cache_entries)
        vae = pipeline.vae.config
        shape = (1, vae.z_dim, 1, 1, 1)
        self._mean = torch.tensor(vae.latents_mean).view(shape)
        self._inverse_std = 1.0 / torch.tensor(vae.latents_std).view(shape)

    def describe(self) -> str:
        return f"{type(self.pipeline).__name__} on {self.device}, {self.dtype}"

    def encode(self, sample: SampleSpec) -> Conditioning:
        sampling = sample.sampling
        length = sampling.max_sequence_length
        guided = sampling.guidance_scale > 1
        return Conditioning(
            positive=self._embed(sample.prompt, length),
            negative=self._embed(sampling.negative_prompt, length) if guided else None,
        )

    def _embed(self, text: str, length: int) -> torch.Tensor:
        def compute() -> torch.Tensor:
            embeds, _ = self.pipeline.encode_prompt(
                prompt=text,
                do_classifier_free_guidance=False,
                max_sequence_length=length,
                device=self.device,
                dtype=self._text_dtype,
            )
            return embeds.to(self.dtype)

        return self._prompts.get((text, length), compute)

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> WanSession:
        sampling = sample.sampling
        scheduler = own(self.pipeline.scheduler, sampling.flow_shift)
        scheduler.set_timesteps(sampling.num_inference_steps, device=self.device)
        scheduler.set_begin_index(0)
        latents = self.pipeline.prepare_latents(
            1,
            self.transformer.config.in_channels,
            sampling.height,
            sampling.width,
            sampling.num_frames,
            torch.float32,
            self.device,
            torch.Generator("cpu").manual_seed(sampling.seed),
        )
        return WanSession(
            spec=sample,
            conditioning=conditioning,
            latents=latents,
            scheduler=scheduler,
            timesteps=scheduler.timesteps,
        )

    def step(self, batch: Sequence[WanSession]) -> None:
        if len(batch) == 1:
            self._step_alone(batch[0])
        else:
            self._step_together(batch)

    def _step_alone(self, session: WanSession) -> None:
        latents = session.latents.to(self.dtype)
        timestep = session.timestep.expand(1)
        positive, negative = session.conditioning.positive, session.conditioning.negative
        if negative is None:
            noise = self._forward("cond", latents, timestep, positive)
        else:
            if self._guidance.split:
                name, text = (
                    ("uncond", negative) if self._guidance.unconditional else ("cond", positive)
                )
                mine = self._forward(name, latents, timestep, text)
                noise, unguided = self._guidance.exchange(mine)
            else:
                noise = self._forward("cond", latents, timestep, positive)
                unguided = self._forward("uncond", latents, timestep, negative)
            noise = unguided + session.spec.sampling.guidance_scale * (noise - unguided)
        session.advance(noise)

    def _step_together(self, batch: Sequence[WanSession]) -> None:
        conditional, unconditional = self._predict(batch)
        for session, noise, base in zip(batch, conditional, unconditional, strict=True):
            if base is not None:
                noise = base + session.spec.sampling.guidance_scale * (noise - base)
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
        halves = [*batch, *(s for s, g in zip(batch, guided, strict=True) if g)]
        rows = self._rows(halves, positive + [n for n in negative if n is not None]).split(1)
        rest = iter(rows[len(batch) :])
        return rows[: len(batch)], [next(rest) if g else None for g in guided]

    def _rows(self, sessions: Sequence[WanSession], texts: Sequence[torch.Tensor]) -> torch.Tensor:
        """One forward with a row for each session and its text."""
        return self._forward(
            "batch",
            torch.cat([s.latents for s in sessions]).to(self.dtype),
            torch.stack([s.timestep for s in sessions]),
            torch.cat(list(texts)),
        )

    def _forward(
        self, context: str, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
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
                return_dict=False,
            )[0]

    def weights(self) -> dict[str, int]:
        return weight_bytes(self.pipeline.components)

    def decodes_together(self, sessions: Sequence[WanSession]) -> bool:
        return self._vae.splits_decode((len(sessions), *sessions[0].latents.shape[1:]))

    def decode(self, sessions: Sequence[WanSession]) -> Sequence[Frames]:
        vae = self.pipeline.vae
        latents = torch.cat([s.latents for s in sessions]).to(vae.device, vae.dtype)
        latents = latents / self._inverse_std.to(latents) + self._mean.to(latents)
        video = self._vae.decode(latents)
        if not self._first:
            return []
        frames = self.pipeline.video_processor.postprocess_video(video, output_type="np")
        return list((frames * 255).round().astype("uint8"))


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> WanFamily:
    """This rank's part of the pipeline in `directory`, on its device; safetensors only."""
    return WanFamily(load_pipeline(WanPipeline, directory, config, mesh), mesh, config)
