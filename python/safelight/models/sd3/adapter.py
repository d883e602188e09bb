"""Stable Diffusion 3 through the adapter protocol: diffusers' own parts, one step at a time.

With a batch of one this is the `__call__` of `StableDiffusion3Pipeline`, or of its siblings for
image-to-image and inpainting, line by line, hence its bits. In a larger batch, whose samples may be
of different tasks, every row of the one forward has its own timestep, and every sample then takes
its own sampler's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3InpaintPipeline, StableDiffusion3Pipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import retrieve_timesteps
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional

from safelight.config import EngineConfig
from safelight.models import halves, samplers, specs
from safelight.models.base import DiffusersFamily
from safelight.models.loading import load_pipeline
from safelight.models.pictures import PictureEncoder, fitted
from safelight.models.scaling import OfAll
from safelight.models.session import Kept, Repainting
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec, Sampling


@dataclass(frozen=True)
class Text:
    """What the text encoders make of a prompt."""

    words: torch.Tensor
    """CLIP's embeddings, then T5's: [1, 77 + max_sequence_length, text_dim]."""
    pooled: torch.Tensor
    """Of both CLIPs, [1, pooled_dim]."""


@dataclass(frozen=True)
class Conditioning:
    """Prompts, and the input picture and mask, if there are any."""

    positive: Text
    negative: Text | None
    """None without guidance."""
    picture: DiagonalGaussianDistribution | None
    """Of the picture's latents."""
    mask: torch.Tensor | None
    """[1, 1, latent rows, latent columns]: 1 is repainted, 0 is kept."""


@dataclass(kw_only=True)
class SD3Session(Repainting):
    """Latents are [1, channels, latent rows, latent columns], in the transformer's precision."""

    conditioning: Conditioning


class SD3Family(DiffusersFamily):
    """A loaded Stable Diffusion 3 pipeline."""

    def __init__(
        self, pipeline: StableDiffusion3Pipeline, mesh: Mesh, config: EngineConfig
    ) -> None:
        super().__init__(pipeline, mesh, config)
        self._scaling = OfAll(pipeline.vae)
        self._pictures = PictureEncoder(self._vae, config.model.prompt_cache_entries)
        # For its image processors; it shares all components.
        sibling = StableDiffusion3InpaintPipeline(**pipeline.components)
        self._images, self._masks = sibling.image_processor, sibling.mask_processor

    # -------------------------------------------------------------------------- conditioning

    def encode(self, sample: SampleSpec) -> Conditioning:
        sampling, pictures = sample.sampling, sample.inputs.images
        length, guided = sampling.max_sequence_length, sampling.guidance_scale > 1
        return Conditioning(
            positive=self._embed(sample.prompt, length),
            negative=self._embed(sampling.negative_prompt, length) if guided else None,
            picture=(
                self._pictures.fitted(self._images, pictures[0], sampling) if pictures else None
            ),
            mask=self._mask(sample),
        )

    def _embed(self, text: str, length: int) -> Text:
        def compute() -> Text:
            words, _, pooled, _ = self.pipeline.encode_prompt(
                prompt=text,
                prompt_2=None,
                prompt_3=None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=length,
            )
            return Text(words.to(self.dtype), pooled.to(self.dtype))

        return self._prompts.get((text, length), compute)

    def _mask(self, sample: SampleSpec) -> torch.Tensor | None:
        """Black and white at the size of the image, then of its latents."""
        if sample.inputs.mask is None:
            return None
        size, scale = sample.sampling, self.pipeline.vae_scale_factor
        pixels = fitted(self._masks, sample.inputs.mask, size)
        mask = functional.interpolate(pixels, size=(size.height // scale, size.width // scale))
        return mask.to(self.device, self.dtype)

    # ------------------------------------------------------------------------------ beginning

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> SD3Session:
        sampling = sample.sampling
        generator = torch.Generator("cpu").manual_seed(sampling.seed)
        scheduler = self._scheduler(sampling)
        timesteps = samplers.left(scheduler, sampling)
        kept = None
        if conditioning.picture is None:
            latents = self._noise(sampling, generator)
        else:
            mask = conditioning.mask
            clean, noise = self._pictured(conditioning.picture, mask is not None, generator)
            latents = scheduler.scale_noise(clean, timesteps[:1], noise)
            if mask is not None:
                kept = Kept(clean, noise, mask)
                latents = noise if sampling.strength == 1 else latents
        return SD3Session(
            spec=sample,
            conditioning=conditioning,
            latents=latents,
            scheduler=scheduler,
            timesteps=timesteps,
            kept=kept,
        )

    def _pictured(
        self, picture: DiagonalGaussianDistribution, repainted: bool, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of a picture, and noise for them; drawn in the pipelines' order."""
        clean = self._scaling.scaled(picture.sample(generator)).to(self.dtype)
        if repainted:
            # That pipeline repeats them, and so lays them out anew; the bits depend on it.
            clean = clean.contiguous()
        return clean, randn_tensor(clean.shape, generator, self.device, self.dtype)

    def _noise(self, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
        return self.pipeline.prepare_latents(
            1,
            self.transformer.config.in_channels,
            sampling.height,
            sampling.width,
            self.dtype,
            self.device,
            generator,
        )

    def _scheduler(self, sampling: Sampling) -> Any:
        """A sampler of its own; its shift is fixed, or grows with the image."""
        scheduler, shift = samplers.own(self.pipeline.scheduler, sampling.flow_shift), {}
        if scheduler.config.get("use_dynamic_shifting", None):
            side = self.pipeline.vae_scale_factor * self.pipeline.patch_size
            tokens = (sampling.height // side) * (sampling.width // side)
            shift["mu"] = samplers.mu(scheduler.config, tokens, most=1.16)
        retrieve_timesteps(scheduler, sampling.num_inference_steps, self.device, **shift)
        return scheduler

    # ------------------------------------------------------------------------------- stepping

    def step(self, batch: Sequence[SD3Session]) -> None:
        scales = [session.spec.sampling.guidance_scale for session in batch]
        halves.step(self._guidance, self._forward, batch, scales, order="negative first")

    def _forward(
        self, context: str, sessions: Sequence[SD3Session], texts: Sequence[Text]
    ) -> torch.Tensor:
        """One forward with a row for each session and its text, [rows, channels, …]."""
        noise: torch.Tensor = self.transformer(
            hidden_states=torch.cat([s.latents for s in sessions]),
            timestep=torch.stack([s.timestep for s in sessions]),
            encoder_hidden_states=torch.cat([text.words for text in texts]),
            pooled_projections=torch.cat([text.pooled for text in texts]),
            return_dict=False,
        )[0]
        return noise

    # ------------------------------------------------------------------------------- decoding

    def _to_decode(self, sessions: Sequence[SD3Session]) -> torch.Tensor:
        return torch.cat([self._unscaled(session) for session in sessions])

    def _unscaled(self, session: SD3Session) -> torch.Tensor:
        """Latents as the VAE has them."""
        vae = self.pipeline.vae
        latents = session.latents.to(vae.device, vae.dtype)
        if session.kept is not None:
            # The inpainting pipeline of diffusers leaves out the shift; we make its pictures.
            return latents / vae.config.scaling_factor
        return self._scaling.unscaled(latents)


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> SD3Family:
    """This rank's part of the pipeline in `directory`, on its device; safetensors only."""
    # T5 may be left out to save memory; diffusers wants to be told.
    parts = ("text_encoder_3", "tokenizer_3")
    absent = {part: None for part in parts if not specs.has(directory, part)}
    pipeline = load_pipeline(StableDiffusion3Pipeline, directory, config, mesh, **absent)
    return SD3Family(pipeline, mesh, config)
