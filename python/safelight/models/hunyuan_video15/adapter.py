"""HunyuanVideo 1.5 through the adapter protocol: diffusers' own parts, one step at a time.

With a batch of one this is the `__call__` of `HunyuanVideo15Pipeline`, or of the one for pictures,
line by line (conditional and unconditional forwards apart), hence its bits. In a larger batch all
halves of all samples ride in one forward. Every sample has its own copy of the guider, which knows
its step. With CFG parallelism the halves are on different ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import retrieve_timesteps
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5_image2video import (
    retrieve_latents,
)

from safelight.config import EngineConfig
from safelight.lora.adapters import Adapters
from safelight.models import frames
from safelight.models.inputs import image
from safelight.models.loading import load_pipeline, weight_bytes
from safelight.models.prompts import PromptCache
from safelight.models.registry import pipeline_class
from safelight.models.samplers import own
from safelight.models.session import Denoising
from safelight.parallel.guidance import Guidance
from safelight.parallel.mesh import Mesh
from safelight.parallel.sequence import SequenceParallel
from safelight.parallel.vae import ParallelVae
from safelight.request import Picture, SampleSpec, Sampling

if TYPE_CHECKING:
    from safelight.models.family import Frames

PIPELINES = {
    kind.__name__: kind for kind in (HunyuanVideo15Pipeline, HunyuanVideo15ImageToVideoPipeline)
}


@dataclass(frozen=True)
class Text:
    """A prompt as the transformer reads it: its words, and what it puts in quotes, by letter."""

    words: torch.Tensor
    """[1, 1000, text_dim]"""
    words_mask: torch.Tensor
    glyphs: torch.Tensor
    """[1, 256, glyph_dim]"""
    glyphs_mask: torch.Tensor


@dataclass(frozen=True)
class Seen:
    """A first picture."""

    embeds: torch.Tensor
    """What the image encoder makes of it, [1, patches, image_dim]."""
    latents: torch.Tensor
    """The VAE's, scaled, [1, channels, 1, latent height, latent width]."""


@dataclass(frozen=True)
class Conditioning:
    positive: Text
    negative: Text | None
    """None without guidance."""
    seen: Seen | None


@dataclass(kw_only=True)
class HunyuanSession(Denoising):
    """Latents are [1, channels, latent frames, latent height, latent width]."""

    conditioning: Conditioning
    guider: Any
    """This sample's own copy."""
    known: torch.Tensor
    """Latents of what is given and its mask, [1, channels + 1, frames, height, width]."""
    embeds: torch.Tensor
    """Of the first picture, or zeros: [1, patches, image_dim]."""

    @property
    def guided(self) -> bool:
        """Whether the next step is; tells the guider which it is."""
        self.guider.set_state(
            step=self.index, num_inference_steps=self.steps, timestep=self.timestep
        )
        return bool(self.guider.num_conditions > 1)

    @property
    def following(self) -> torch.Tensor:
        """Timestep of the step after the next; 0 after the last."""
        last = self.index == self.steps - 1
        return torch.zeros_like(self.timestep) if last else self.timesteps[self.index + 1]


class HunyuanVideo15Family:
    """A loaded HunyuanVideo 1.5 pipeline, for text or for pictures."""

    def __init__(self, pipeline: Any, mesh: Mesh, config: EngineConfig) -> None:
        self.pipeline = pipeline
        self.transformer = pipeline.transformer
        self._first = mesh.rank == 0
        self._guidance = Guidance(mesh)
        # Words that are not there are masked row by row and column by column: no rank could put
        # the mask together, so this refuses a split sequence.
        SequenceParallel.apply(self.transformer, mesh)
        self._vae = ParallelVae(pipeline.vae, mesh, config.parallel.vae_parallel)
        self.device = mesh.device
        self.dtype = self.transformer.dtype
        self._pictured = isinstance(pipeline, HunyuanVideo15ImageToVideoPipeline)
        # The pipeline for text makes nothing of it.
        self._meanflow = self._pictured and self.transformer.config.use_meanflow
        self.lora = Adapters(pipeline)
        entries = config.model.prompt_cache_entries
        self._prompts = PromptCache(entries, lambda: self.lora.of_prompts)
        self._pictures = PromptCache(entries)

    def describe(self) -> str:
        return f"{type(self.pipeline).__name__} on {self.device}, {self.dtype}"

    # ---------------------------------------------------------------------------- what is given

    def encode(self, sample: SampleSpec) -> Conditioning:
        sampling = sample.sampling
        guider = self._guider(sampling)
        guided = guider._enabled and guider.num_conditions > 1
        seen = None
        if self._pictured:
            picture = sample.inputs.images[0]
            key = (picture.digest, sampling.width, sampling.height)
            seen = self._pictures.get(key, lambda: self._look(picture, sampling))
        return Conditioning(
            positive=self._embed(sample.prompt),
            negative=self._embed(sampling.negative_prompt) if guided else None,
            seen=seen,
        )

    def _embed(self, prompt: str) -> Text:
        def compute() -> Text:
            tensors = self.pipeline.encode_prompt(prompt, device=self.device, dtype=self.dtype)
            words, words_mask, glyphs, glyphs_mask = tensors
            return Text(words, words_mask, glyphs, glyphs_mask)

        return self._prompts.get(prompt, compute)

    def _look(self, picture: Picture, sampling: Sampling) -> Seen:
        processor, vae = self.pipeline.video_processor, self.pipeline.vae
        size = {"height": sampling.height, "width": sampling.width}
        cut = processor.resize(image(picture), **size, resize_mode="crop")
        embeds = self.pipeline.encode_image(
            image=cut, batch_size=1, device=self.device, dtype=self.dtype
        )
        pixels = processor.preprocess(cut, **size).to(self.device, dtype=vae.dtype).unsqueeze(2)
        latents = retrieve_latents(self._vae.encode(pixels), sample_mode="argmax")
        return Seen(embeds, (latents * vae.config.scaling_factor).to(self.dtype))

    # -------------------------------------------------------------------------------- the start

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> HunyuanSession:
        sampling, seen = sample.sampling, conditioning.seen
        scheduler = self._scheduler(sampling)
        latents = self.pipeline.prepare_latents(
            1,
            self.pipeline.num_channels_latents,
            sampling.height,
            sampling.width,
            sampling.num_frames,
            self.dtype,
            self.device,
            torch.Generator("cpu").manual_seed(sampling.seed),
        )
        return HunyuanSession(
            spec=sample,
            conditioning=conditioning,
            latents=latents,
            scheduler=scheduler,
            timesteps=scheduler.timesteps,
            guider=self._guider(sampling),
            known=self._known(latents, seen),
            embeds=self._nothing_seen() if seen is None else seen.embeds,
        )

    def _scheduler(self, sampling: Sampling) -> Any:
        scheduler = own(self.pipeline.scheduler, sampling.flow_shift)
        steps = sampling.num_inference_steps
        sigmas = np.linspace(1.0, 0.0, steps + 1)[:-1]
        retrieve_timesteps(scheduler, steps, self.device, sigmas=sigmas)
        scheduler.set_begin_index(0)
        return scheduler

    def _guider(self, sampling: Sampling) -> Any:
        """A guider of its own, which has not begun. `new` would say that guiders are experimental,
        each time."""
        guider = copy.copy(self.pipeline.guider)
        guider.guidance_scale = sampling.guidance_scale
        return guider

    def _known(self, latents: torch.Tensor, seen: Seen | None) -> torch.Tensor:
        """Zeros, but for the first frame of a picture."""
        channels = latents.shape[1]
        known = latents.new_zeros(1, channels + 1, *latents.shape[2:])
        if seen is not None:
            known[:, :channels, :1] = seen.latents
            known[:, channels:, :1] = 1
        return known

    def _nothing_seen(self) -> torch.Tensor:
        shape = (1, self.pipeline.vision_num_semantic_tokens, self.pipeline.vision_states_dim)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    # --------------------------------------------------------------------------------- the steps

    def step(self, batch: Sequence[HunyuanSession]) -> None:
        guided = [session.guided for session in batch]
        noise, base = self._halves(batch, guided)
        for session, prompted, unprompted in zip(batch, noise, base, strict=True):
            session.advance(session.guider.forward(prompted, unprompted).pred)

    def _halves(
        self, batch: Sequence[HunyuanSession], guided: Sequence[bool]
    ) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor | None]]:
        """Predictions with and without the prompt; the latter None for those not guided."""
        positive = [session.conditioning.positive for session in batch]
        if self._guidance.split and any(guided):
            # The unguided ride along in the other half, where nobody looks at them.
            other = [s.conditioning.negative or s.conditioning.positive for s in batch]
            name, texts = (
                ("pred_uncond", other)
                if self._guidance.unconditional
                else (
                    "pred_cond",
                    positive,
                )
            )
            halves = self._guidance.exchange(self._forward(name, batch, texts))
            noise, base = (half.split(1) for half in halves)
            return noise, [b if g else None for b, g in zip(base, guided, strict=True)]
        chosen = [session for session, one in zip(batch, guided, strict=True) if one]
        negative = [s.conditioning.negative for s in chosen if s.conditioning.negative is not None]
        if len(batch) == 1:
            noise = self._forward("pred_cond", batch, positive).split(1)
            base = self._forward("pred_uncond", chosen, negative).split(1) if chosen else ()
        else:
            rows = self._forward("batch", [*batch, *chosen], [*positive, *negative]).split(1)
            noise, base = rows[: len(batch)], rows[len(batch) :]
        rest = iter(base)
        return noise, [next(rest) if one else None for one in guided]

    def _forward(
        self, context: str, batch: Sequence[HunyuanSession], texts: Sequence[Text]
    ) -> torch.Tensor:
        """One forward; [rows, channels, latent frames, latent height, latent width]"""
        latents = torch.cat([torch.cat([s.latents, s.known], dim=1) for s in batch])
        following = None
        if self._meanflow:
            following = torch.stack([s.following for s in batch]).to(latents.dtype)
        with self.transformer.cache_context(context):
            prediction: torch.Tensor = self.transformer(
                hidden_states=latents,
                image_embeds=torch.cat([s.embeds for s in batch]),
                timestep=torch.stack([s.timestep for s in batch]).to(latents.dtype),
                timestep_r=following,
                encoder_hidden_states=torch.cat([text.words for text in texts]),
                encoder_attention_mask=torch.cat([text.words_mask for text in texts]),
                encoder_hidden_states_2=torch.cat([text.glyphs for text in texts]),
                encoder_attention_mask_2=torch.cat([text.glyphs_mask for text in texts]),
                return_dict=False,
            )[0]
        return prediction

    # ----------------------------------------------------------------------------------- the end

    def weights(self) -> dict[str, int]:
        return weight_bytes(self.pipeline.components)

    def decodes_together(self, sessions: Sequence[HunyuanSession]) -> bool:
        return self._vae.splits_decode((len(sessions), *sessions[0].latents.shape[1:]))

    def decode(self, sessions: Sequence[HunyuanSession]) -> Sequence[Frames]:
        vae = self.pipeline.vae
        latents = torch.cat([s.latents for s in sessions]).to(vae.dtype)
        video = self._vae.decode(latents / vae.config.scaling_factor)
        return frames.of_videos(self.pipeline.video_processor, video) if self._first else []

    def preview(self, session: HunyuanSession) -> Frames:
        vae = self.pipeline.vae
        assert session.estimate is not None
        latents = frames.one_of(session.estimate).to(vae.dtype) / vae.config.scaling_factor
        return frames.of_videos(self.pipeline.video_processor, vae.decode(latents).sample)[0]


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> HunyuanVideo15Family:
    """This rank's part of the pipeline in `directory`, on its device; safetensors only."""
    kind = PIPELINES[pipeline_class(directory)]
    return HunyuanVideo15Family(load_pipeline(kind, directory, config, mesh), mesh, config)
