"""Wan through the adapter protocol: diffusers' own parts, called one step at a time.

With a batch of one this is `WanPipeline.__call__` line by line (conditional and unconditional
forwards apart), hence its bits. In a larger batch all halves of all samples ride in one forward
with a timestep per row, and every sample then takes its own sampler's step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import WanPipeline

from safelight.config import ModelConfig
from safelight.models.loading import device_of, dtypes_of
from safelight.models.prompts import PromptCache
from safelight.request import SampleSpec

if TYPE_CHECKING:
    from safelight.models.family import Frames


@dataclass(frozen=True)
class Conditioning:
    """Prompt embeddings, [1, max_sequence_length, text_dim] each."""

    positive: torch.Tensor
    negative: torch.Tensor | None
    """None without guidance."""


@dataclass
class WanSession:
    """One sample's tensors and its own sampler."""

    spec: SampleSpec
    conditioning: Conditioning
    latents: torch.Tensor
    """float32 [1, channels, latent frames, latent height, latent width]"""
    scheduler: Any
    timesteps: torch.Tensor
    index: int = 0

    @property
    def timestep(self) -> torch.Tensor:
        return self.timesteps[self.index]

    def advance(self, noise: torch.Tensor) -> None:
        """Take the sampler's step with the guided prediction `noise`, shaped as the latents."""
        self.latents = self.scheduler.step(noise, self.timestep, self.latents, return_dict=False)[0]
        self.index += 1


class WanFamily:
    """A loaded Wan 2.1 pipeline."""

    def __init__(self, pipeline: WanPipeline, prompt_cache_entries: int) -> None:
        self.pipeline = pipeline
        self.transformer = pipeline.transformer
        self.device = pipeline._execution_device
        # Asking a module for its dtype walks all of it: 0.7 ms, too much for every step.
        self.dtype = self.transformer.dtype
        self._text_dtype = pipeline.text_encoder.dtype
        self._prompts = PromptCache(prompt_cache_entries)
        config = pipeline.vae.config
        shape = (1, config.z_dim, 1, 1, 1)
        self._mean = torch.tensor(config.latents_mean).view(shape)
        self._inverse_std = 1.0 / torch.tensor(config.latents_std).view(shape)

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
        scheduler = copy.deepcopy(self.pipeline.scheduler)
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
        return WanSession(sample, conditioning, latents, scheduler, scheduler.timesteps)

    def step(self, batch: Sequence[WanSession]) -> None:
        if len(batch) == 1:
            self._step_alone(batch[0])
        else:
            self._step_together(batch)

    def _step_alone(self, session: WanSession) -> None:
        latents = session.latents.to(self.dtype)
        timestep = session.timestep.expand(1)
        conditioning = session.conditioning
        noise = self._forward("cond", latents, timestep, conditioning.positive)
        if conditioning.negative is not None:
            scale = session.spec.sampling.guidance_scale
            unguided = self._forward("uncond", latents, timestep, conditioning.negative)
            noise = unguided + scale * (noise - unguided)
        session.advance(noise)

    def _step_together(self, batch: Sequence[WanSession]) -> None:
        """Rows: every sample's conditional half, then the unconditional halves of the guided."""
        guided = [s for s in batch if s.conditioning.negative is not None]
        rows = [*batch, *guided]
        texts = [s.conditioning.positive for s in batch] + [
            s.conditioning.negative for s in guided if s.conditioning.negative is not None
        ]
        noise = self._forward(
            "batch",
            torch.cat([s.latents for s in rows]).to(self.dtype),
            torch.stack([s.timestep for s in rows]),
            torch.cat(texts),
        )
        unguided = dict(zip((s.spec.id for s in guided), noise[len(batch) :].split(1), strict=True))
        for session, prediction in zip(batch, noise[: len(batch)].split(1), strict=True):
            if (base := unguided.get(session.spec.id)) is not None:
                scale = session.spec.sampling.guidance_scale
                prediction = base + scale * (prediction - base)
            session.advance(prediction)

    def _forward(
        self, context: str, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        with self.transformer.cache_context(context):
            return self.transformer(
                hidden_states=latents,
                timestep=timestep,
                encoder_hidden_states=text,
                return_dict=False,
            )[0]

    def decode(self, sessions: Sequence[WanSession]) -> Sequence[Frames]:
        vae = self.pipeline.vae
        latents = torch.cat([s.latents for s in sessions]).to(vae.device, vae.dtype)
        latents = latents / self._inverse_std.to(latents) + self._mean.to(latents)
        video = vae.decode(latents, return_dict=False)[0]
        frames = self.pipeline.video_processor.postprocess_video(video, output_type="np")
        return list((frames * 255).round().astype("uint8"))


def load(directory: Path, config: ModelConfig) -> WanFamily:
    """The pipeline in `directory` on the configured device; safetensors only."""
    device = device_of(config)
    pipeline = WanPipeline.from_pretrained(
        directory,
        dtype=dtypes_of(config, device),
        use_safetensors=True,
        local_files_only=True,
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return WanFamily(pipeline, config.prompt_cache_entries)
