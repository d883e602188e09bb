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
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusion3InpaintPipeline, StableDiffusion3Pipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    calculate_shift,
    retrieve_timesteps,
)
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional

from safelight.config import EngineConfig
from safelight.models import specs
from safelight.models.inputs import image
from safelight.models.loading import load_pipeline, weight_bytes
from safelight.models.pictures import PictureEncoder, shorten
from safelight.models.prompts import PromptCache
from safelight.models.rows import predict
from safelight.models.samplers import own
from safelight.models.session import Denoising
from safelight.parallel.guidance import Guidance
from safelight.parallel.mesh import Mesh
from safelight.parallel.vae import ParallelVae
from safelight.request import SampleSpec, Sampling

if TYPE_CHECKING:
    from safelight.models.family import Frames


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


@dataclass(frozen=True)
class Kept:
    """What inpainting keeps outside the mask."""

    clean: torch.Tensor
    """Latents of the picture."""
    noise: torch.Tensor
    mask: torch.Tensor


@dataclass(kw_only=True)
class SD3Session(Denoising):
    """Latents are [1, channels, latent rows, latent columns], in the transformer's precision."""

    conditioning: Conditioning
    kept: Kept | None = None

    def advance(self, noise: torch.Tensor) -> None:
        super().advance(noise)
        if self.kept is None:
            return
        around, mask = self.kept.clean, self.kept.mask
        if self.index < self.steps:
            next_ = self.timestep.reshape(1)
            around = self.scheduler.scale_noise(around, next_, self.kept.noise)
        self.latents = (1 - mask) * around + mask * self.latents


class SD3Family:
    """A loaded Stable Diffusion 3 pipeline."""

    def __init__(
        self, pipeline: StableDiffusion3Pipeline, mesh: Mesh, config: EngineConfig
    ) -> None:
        self.pipeline = pipeline
        self.transformer = pipeline.transformer
        self._first = mesh.rank == 0
        self._guidance = Guidance(mesh)
        self._vae = ParallelVae(pipeline.vae, mesh, config.parallel.vae_parallel)
        self.device = mesh.device
        # Asking a module for its dtype walks all of it: 0.7 ms, too much for every step.
        self.dtype = self.transformer.dtype
        entries = config.model.prompt_cache_entries
        self._prompts = PromptCache(entries)
        # For its image processors; it shares all components.
        sibling = StableDiffusion3InpaintPipeline(**pipeline.components)
        self._pictures = PictureEncoder(self._vae, sibling.image_processor, entries)
        self._masks = sibling.mask_processor

    def describe(self) -> str:
        return f"{type(self.pipeline).__name__} on {self.device}, {self.dtype}"

    # -------------------------------------------------------------------------- conditioning

    def encode(self, sample: SampleSpec) -> Conditioning:
        sampling, pictures = sample.sampling, sample.inputs.images
        length, size = sampling.max_sequence_length, (sampling.width, sampling.height)
        guided = sampling.guidance_scale > 1
        return Conditioning(
            positive=self._embed(sample.prompt, length),
            negative=self._embed(sampling.negative_prompt, length) if guided else None,
            picture=self._pictures.encode(pictures[0], *size) if pictures else None,
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
        height, width = sample.sampling.height, sample.sampling.width
        pixels = self._masks.preprocess(image(sample.inputs.mask), height=height, width=width)
        scale = self.pipeline.vae_scale_factor
        mask = functional.interpolate(pixels, size=(height // scale, width // scale))
        return mask.to(self.device, self.dtype)

    # ------------------------------------------------------------------------------ beginning

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> SD3Session:
        sampling = sample.sampling
        generator = torch.Generator("cpu").manual_seed(sampling.seed)
        scheduler = self._scheduler(sampling)
        strength = sampling.strength or 1.0  # none without a picture: all steps
        timesteps = shorten(scheduler, sampling.num_inference_steps, strength)
        kept = None
        if conditioning.picture is None:
            latents = self._noise(sampling, generator)
        else:
            mask = conditioning.mask
            clean, noise = self._pictured(conditioning.picture, mask is not None, generator)
            latents = scheduler.scale_noise(clean, timesteps[:1], noise)
            if mask is not None:
                kept = Kept(clean, noise, mask)
                latents = noise if strength == 1 else latents
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
        clean = self._pictures.draw(picture, generator).to(self.dtype)
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
        scheduler = own(self.pipeline.scheduler, sampling.flow_shift)
        config, shift = scheduler.config, {}
        if config.get("use_dynamic_shifting", None):
            side = self.pipeline.vae_scale_factor * self.pipeline.patch_size
            shift["mu"] = calculate_shift(
                (sampling.height // side) * (sampling.width // side),
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.16),
            )
        retrieve_timesteps(scheduler, sampling.num_inference_steps, self.device, **shift)
        return scheduler

    # ------------------------------------------------------------------------------- stepping

    def step(self, batch: Sequence[SD3Session]) -> None:
        noise, bases = predict(self._guidance, batch, self._forward, unconditional_first=True)
        for session, guided, base in zip(batch, noise, bases, strict=True):
            if base is not None:
                guided = base + session.spec.sampling.guidance_scale * (guided - base)
            session.advance(guided)

    def _forward(
        self, sessions: Sequence[SD3Session], texts: Sequence[Text]
    ) -> Sequence[torch.Tensor]:
        """One forward with a row for each session and its text, [1, channels, rows, columns]."""
        return self.transformer(
            hidden_states=torch.cat([s.latents for s in sessions]),
            timestep=torch.stack([s.timestep for s in sessions]),
            encoder_hidden_states=torch.cat([text.words for text in texts]),
            pooled_projections=torch.cat([text.pooled for text in texts]),
            return_dict=False,
        )[0].split(1)

    def weights(self) -> dict[str, int]:
        return weight_bytes(self.pipeline.components)

    # ------------------------------------------------------------------------------- decoding

    def decodes_together(self, sessions: Sequence[SD3Session]) -> bool:
        return self._vae.splits_decode((len(sessions), *sessions[0].latents.shape[1:]))

    def decode(self, sessions: Sequence[SD3Session]) -> Sequence[Frames]:
        pixels = self._vae.decode(torch.cat([self._unscaled(s) for s in sessions]))
        if not self._first:
            return []
        images = self.pipeline.image_processor.postprocess(pixels, output_type="np")
        return list((images[:, None] * 255).round().astype("uint8"))

    def _unscaled(self, session: SD3Session) -> torch.Tensor:
        """Latents as the VAE has them."""
        vae = self.pipeline.vae
        latents = session.latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        # The inpainting pipeline of diffusers leaves out the shift; we make its pictures.
        return latents if session.kept is not None else latents + vae.config.shift_factor


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> SD3Family:
    """This rank's part of the pipeline in `directory`, on its device; safetensors only."""
    # T5 may be left out to save memory; diffusers wants to be told.
    parts = ("text_encoder_3", "tokenizer_3")
    absent = {part: None for part in parts if not specs.has(directory, part)}
    pipeline = load_pipeline(StableDiffusion3Pipeline, directory, config, mesh, **absent)
    return SD3Family(pipeline, mesh, config)
