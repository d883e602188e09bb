"""FLUX.2 through the adapter protocol: diffusers' own parts, called one step at a time.

With a batch of one this is the `__call__` of `Flux2Pipeline` and `Flux2KleinPipeline` line by line,
hence their bits. In a larger batch every row of the one forward has its own timestep and guidance,
and every sample then takes its own sampler's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu, retrieve_timesteps

from safelight.config import EngineConfig
from safelight.models import halves, samplers
from safelight.models.base import DiffusersFamily, split
from safelight.models.flux2.spec import SEEN, seen
from safelight.models.inputs import image
from safelight.models.loading import load_pipeline
from safelight.models.pictures import PictureEncoder
from safelight.models.registry import pipeline_class
from safelight.models.session import Denoising
from safelight.parallel.mesh import Mesh
from safelight.request import Picture, SampleSpec


@dataclass(frozen=True)
class Conditioning:
    """What a sample is made from."""

    positive: torch.Tensor
    """Of the prompt, [1, max_sequence_length, text_dim]."""
    negative: torch.Tensor | None
    """Of no prompt; None without a half that is not guided by one."""
    pictures: tuple[torch.Tensor, ...] = ()
    """Latents of the reference pictures as the transformer knows them, [1, channels, rows,
    columns] each."""


@dataclass(kw_only=True)
class Flux2Session(Denoising):
    """Latents are packed: [1, tokens, channels]; a token is 2x2 latents of the VAE."""

    conditioning: Conditioning
    image_ids: torch.Tensor
    """Positions of the tokens, [1, tokens + reference tokens, 4]."""
    guidance: torch.Tensor | None
    """float32 [1]; None where it is no input of the transformer."""
    references: torch.Tensor | None
    """Tokens that the transformer sees after those of the latents, [1, reference tokens,
    channels]."""

    @property
    def inputs(self) -> torch.Tensor:
        """What the transformer sees."""
        if self.references is None:
            return self.latents
        return torch.cat([self.latents, self.references], dim=1)


class Flux2Family(DiffusersFamily):
    """A loaded FLUX.2 pipeline: guidance is an input of its transformer."""

    def __init__(self, pipeline: Any, mesh: Mesh, config: EngineConfig) -> None:
        super().__init__(pipeline, mesh, config)
        self._sequence = split(self.transformer, mesh)
        self._pictures = PictureEncoder(self._vae, config.model.prompt_cache_entries)
        self._ids: dict[int, torch.Tensor] = {}

    # -------------------------------------------------------------------------- text and pictures

    def encode(self, sample: SampleSpec) -> Conditioning:
        length = sample.sampling.max_sequence_length
        return Conditioning(
            positive=self._words(sample.prompt, length),
            negative=self._words("", length) if self._halved(sample) else None,
            pictures=tuple(self._seen(picture) for picture in sample.inputs.images),
        )

    def _halved(self, sample: SampleSpec) -> bool:
        """Whether there is a second half, without the prompt."""
        return False

    def _words(self, prompt: str, length: int) -> torch.Tensor:
        def embed() -> torch.Tensor:
            text, _ = self.pipeline.encode_prompt(
                prompt=prompt, device=self.device, max_sequence_length=length
            )
            return text.to(self.dtype)

        return self._prompts.get((prompt, length), embed)

    def _seen(self, picture: Picture) -> torch.Tensor:
        """The latents of a reference picture."""

        encoded = self._pictures.encode(picture.digest, lambda: self._pixels(picture))
        latents = self.pipeline._patchify_latents(encoded.mode())
        mean, deviation = self._statistics(latents)
        normal: torch.Tensor = (latents - mean) / deviation
        return normal.to(self.dtype)

    def _pixels(self, picture: Picture) -> torch.Tensor:
        """float32 [1, 3, height, width] in [-1, 1]: at most a megapixel, its edges cropped."""
        processor, pixels = self.pipeline.image_processor, image(picture)
        if picture.width * picture.height > SEEN:
            pixels = processor._resize_to_target_area(pixels, SEEN)
        width, height = seen(picture.size, 2 * self.pipeline.vae_scale_factor)
        made: torch.Tensor = processor.preprocess(
            pixels, height=height, width=width, resize_mode="crop"
        )
        return made

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the latents' channels, [1, channels, 1, 1]."""
        vae = self.pipeline.vae
        mean = vae.bn.running_mean.view(1, -1, 1, 1)
        deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
        return mean.to(like), deviation.to(like)

    # ------------------------------------------------------------------------------ the beginning

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> Flux2Session:
        sampling = sample.sampling
        latents, image_ids = self.pipeline.prepare_latents(
            1,
            self.transformer.config.in_channels // 4,
            sampling.height,
            sampling.width,
            self.dtype,
            self.device,
            torch.Generator("cpu").manual_seed(sampling.seed),
        )
        references = None
        if pictures := list(conditioning.pictures):
            ids = self.pipeline._prepare_image_ids(pictures).to(self.device)
            image_ids = torch.cat([image_ids, ids], dim=1)
            packed = [self.pipeline._pack_latents(latents) for latents in pictures]
            references = torch.cat(packed, dim=1)
        scheduler = self._scheduler(sample, latents.shape[1])
        return Flux2Session(
            spec=sample,
            conditioning=conditioning,
            latents=latents,
            image_ids=image_ids,
            guidance=self._embedded(sample),
            references=references,
            scheduler=scheduler,
            timesteps=scheduler.timesteps,
        )

    def _embedded(self, sample: SampleSpec) -> torch.Tensor | None:
        """Guidance that is an input of the transformer."""
        return torch.full([1], sample.sampling.guidance_scale, device=self.device)

    def _scheduler(self, sample: SampleSpec, tokens: int) -> Any:
        """A sampler of its own for an image of so many tokens; the larger, the more its noise
        levels are shifted."""
        scheduler = samplers.own(self.pipeline.scheduler, sample.sampling.flow_shift)
        steps = sample.sampling.num_inference_steps
        own_sigmas = scheduler.config.get("use_flow_sigmas", False)
        sigmas = None if own_sigmas else np.linspace(1.0, 1 / steps, steps)
        mu = compute_empirical_mu(image_seq_len=tokens, num_steps=steps)
        retrieve_timesteps(scheduler, steps, self.device, sigmas=sigmas, mu=mu)
        scheduler.set_begin_index(0)
        return scheduler

    # -------------------------------------------------------------------------------------- steps

    def step(self, batch: Sequence[Flux2Session]) -> None:
        scales = [session.spec.sampling.guidance_scale for session in batch]
        halves.step(self._guidance, self._forward, batch, scales)

    def _forward(
        self, context: str, sessions: Sequence[Flux2Session], texts: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """One forward with a row for each session: all are of one size, as their references."""
        inputs = torch.cat([s.inputs for s in sessions])
        timesteps = torch.stack([s.timestep for s in sessions]).to(inputs.dtype)
        text = torch.cat(list(texts))
        guidance = [s.guidance for s in sessions if s.guidance is not None]
        self._sequence.prepare(inputs.shape[1], text.shape[1])
        with self.transformer.cache_context(context):
            noise = self.transformer(
                hidden_states=inputs,
                timestep=timesteps / 1000,
                guidance=torch.cat(guidance) if guidance else None,
                encoder_hidden_states=text,
                txt_ids=self._text_ids(text),
                img_ids=sessions[0].image_ids,
                return_dict=False,
            )[0]
        tokens: torch.Tensor = noise[:, : sessions[0].latents.shape[1]]
        return tokens

    def _text_ids(self, text: torch.Tensor) -> torch.Tensor:
        """Positions of the words, [1, max_sequence_length, 4]; made on the host, so kept."""
        length = text.shape[1]
        if length not in self._ids:
            self._ids[length] = self.pipeline._prepare_text_ids(text[:1]).to(self.device)
        return self._ids[length]

    # -------------------------------------------------------------------------------------- the end

    def decodes_together(self, sessions: Sequence[Flux2Session]) -> bool:
        return self._vae.splits_decode(self._to_decode(sessions).shape)

    def _to_decode(self, sessions: Sequence[Flux2Session]) -> torch.Tensor:
        size, step = sessions[0].spec.sampling, 2 * self.pipeline.vae_scale_factor
        packed = self._stacked(sessions).transpose(1, 2)
        latents = packed.unflatten(2, (size.height // step, size.width // step))
        latents = latents.to(self.pipeline.vae.device, self.pipeline.vae.dtype)
        mean, deviation = self._statistics(latents)
        unpacked: torch.Tensor = self.pipeline._unpatchify_latents(latents * deviation + mean)
        return unpacked


class KleinFamily(Flux2Family):
    """A loaded FLUX.2 Klein pipeline: guided by two halves, or distilled and not guided at all."""

    def _halved(self, sample: SampleSpec) -> bool:
        return sample.sampling.guidance_scale > 1 and not self.pipeline.config.is_distilled

    def _embedded(self, sample: SampleSpec) -> None:
        """None at all."""


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> Flux2Family:
    """This rank's part of the pipeline in `directory`, on its device; safetensors only."""
    if pipeline_class(directory) == "Flux2KleinPipeline":
        return KleinFamily(load_pipeline(Flux2KleinPipeline, directory, config, mesh), mesh, config)
    return Flux2Family(load_pipeline(Flux2Pipeline, directory, config, mesh), mesh, config)
