"""Stable Diffusion XL through the adapter protocol: diffusers' own parts, one step at a time.

With a batch of one this is the `__call__` of `StableDiffusionXLPipeline`, or of its siblings for
image-to-image and inpainting, line by line, hence its bits. In a larger batch, whose samples may be
of different tasks, every row of the one forward has its own timestep, and every sample then takes
its own sampler's step. With CFG parallelism the halves are on different ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    retrieve_latents,
    retrieve_timesteps,
)

from safelight.config import EngineConfig
from safelight.errors import ConfigError
from safelight.models import halves
from safelight.models.base import DiffusersFamily
from safelight.models.loading import load_pipeline
from safelight.models.registry import pipeline_class
from safelight.models.samplers import own
from safelight.models.sdxl.pictures import Pictured, Pictures
from safelight.models.sdxl.session import Half, Halves, SDXLSession
from safelight.models.sdxl.spec import LATENT, REPAINTING
from safelight.models.session import Kept
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec, Sampling, Task

if TYPE_CHECKING:
    from safelight.models.family import Frames

KINDS: dict[Task, Any] = {
    "text-to-image": StableDiffusionXLPipeline,
    "image-to-image": StableDiffusionXLImg2ImgPipeline,
    "inpainting": StableDiffusionXLInpaintPipeline,
}
CROP = (0, 0)
AESTHETIC_SCORES = (6.0, 2.5)
"""What the pipelines ask the refiner for, and what its unconditional half."""


@dataclass(frozen=True)
class Text:
    """What the text encoders make of a prompt."""

    words: torch.Tensor
    """Of all of them, [1, 77, text_dim]."""
    pooled: torch.Tensor
    """Of the last, [1, projection_dim]."""


@dataclass(frozen=True)
class Conditioning:
    positive: Text
    negative: Text | None
    """None without guidance."""
    pictured: Pictured | None


class SDXLFamily(DiffusersFamily):
    """A loaded Stable Diffusion XL pipeline; of which class, does not matter."""

    def __init__(self, pipeline: Any, mesh: Mesh, config: EngineConfig) -> None:
        vae = pipeline.vae
        if vae.dtype == torch.float16 and vae.config.force_upcast:
            # The pipelines do so before every decode and encode, as it overflows in float16.
            vae.to(torch.float32)
        super().__init__(pipeline, mesh, config, pipeline.unet)
        self.unet = pipeline.unet
        entries = config.model.prompt_cache_entries
        self._siblings = {task: _sibling(kind, pipeline) for task, kind in KINDS.items()}
        self._pictures = Pictures(self._siblings["inpainting"], self._vae, self.dtype, entries)
        self._sees_mask = self.unet.config.in_channels == REPAINTING

    # -------------------------------------------------------------------------- conditioning

    def encode(self, sample: SampleSpec) -> Conditioning:
        sampling = sample.sampling
        guided = sampling.guidance_scale > 1 and self.unet.config.time_cond_proj_dim is None
        positive = self._embed(sample.prompt)
        return Conditioning(
            positive=positive,
            negative=self._negative(sampling.negative_prompt, positive) if guided else None,
            pictured=self._pictures.encode(
                sample,
                needs_clean=not self._sees_mask or sampling.strength != 1,
                sees_mask=self._sees_mask,
            ),
        )

    def _negative(self, text: str, positive: Text) -> Text:
        """An empty text is none, which is what most SDXL were trained with: zeros."""
        if not text and self.pipeline.config.force_zeros_for_empty_prompt:
            return Text(torch.zeros_like(positive.words), torch.zeros_like(positive.pooled))
        return self._embed(text)

    def _embed(self, text: str) -> Text:
        def compute() -> Text:
            words, _, pooled, _ = self.pipeline.encode_prompt(
                prompt=text, device=self.device, do_classifier_free_guidance=False
            )
            return Text(words.to(self.dtype), pooled.to(self.dtype))

        return self._prompts.get(text, compute)

    # ------------------------------------------------------------------------------ beginning

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> SDXLSession:
        sampling, task = sample.sampling, sample.task
        generator = torch.Generator("cpu").manual_seed(sampling.seed)
        pipeline = self._own_pipeline(sample)
        timesteps = self._timesteps(pipeline, sampling)
        kept = beside = None
        if conditioning.pictured is None:
            latents = self._noise(pipeline, sampling, generator)
        elif task == "image-to-image":
            latents = self._noised(pipeline, conditioning.pictured, timesteps, generator)
        else:
            latents, kept, beside = self._masked(
                pipeline, sampling, conditioning.pictured, timesteps, generator
            )
        return SDXLSession(
            spec=sample,
            conditioning=self._halves(pipeline, sample, conditioning),
            latents=latents,
            scheduler=pipeline.scheduler,
            timesteps=timesteps,
            options=pipeline.prepare_extra_step_kwargs(generator, 0.0),
            embedded_guidance=self._embedded_guidance(sampling.guidance_scale),
            beside=beside,
            kept=kept,
        )

    def _own_pipeline(self, sample: SampleSpec) -> Any:
        """The task's pipeline with a sampler of this sample: its methods ask it for noise levels.
        Everything else is shared."""
        pipeline = copy.copy(self._siblings[sample.task])
        pipeline.scheduler = own(self.pipeline.scheduler, sample.sampling.flow_shift)
        return pipeline

    def _timesteps(self, pipeline: Any, sampling: Sampling) -> torch.Tensor:
        """Those that the strength leaves; the sampler begins there."""
        scheduler, steps = pipeline.scheduler, sampling.num_inference_steps
        timesteps: torch.Tensor = retrieve_timesteps(scheduler, steps, self.device)[0]
        if sampling.strength is not None:
            timesteps, _ = pipeline.get_timesteps(steps, sampling.strength, self.device)
        elif hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        return timesteps

    def _noise(self, pipeline: Any, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
        latents: torch.Tensor = pipeline.prepare_latents(
            1,
            LATENT,
            sampling.height,
            sampling.width,
            self.dtype,
            self.device,
            generator,
        )
        return latents

    def _noised(
        self,
        pipeline: Any,
        pictured: Pictured,
        timesteps: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Latents of the picture with as much noise as the first step expects."""
        factor = self.pipeline.vae.config.scaling_factor
        clean = self._draw(pictured.picture, generator)
        mean, std = self._statistics(clean)
        if mean is not None and std is not None:
            clean = (clean - mean) * factor / std
        else:
            clean = factor * clean
        latents: torch.Tensor = pipeline.prepare_latents(
            clean, timesteps[:1], 1, 1, self.dtype, self.device, generator
        )
        return latents

    def _masked(
        self,
        pipeline: Any,
        sampling: Sampling,
        pictured: Pictured,
        timesteps: torch.Tensor,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, Kept | None, torch.Tensor | None]:
        """Latents to begin with; what is kept outside the mask, or what the UNet is shown of it.

        Drawn in the pipeline's order: the picture, the noise, the masked picture.
        """
        scaling = self.pipeline.vae.config.scaling_factor
        shape = _latent_shape(pipeline, sampling)
        # Pure noise has nothing of the picture.
        clean = torch.zeros(shape, device=self.device, dtype=self.dtype)
        if pictured.picture is not None:
            clean = scaling * self._draw(pictured.picture, generator)
        latents, noise, clean = pipeline.prepare_latents(
            *shape[:2],
            sampling.height,
            sampling.width,
            self.dtype,
            self.device,
            generator,
            image=clean,
            timestep=timesteps[:1],
            is_strength_max=sampling.strength == 1,
            return_noise=True,
            return_image_latents=True,
        )
        # The pipeline encodes the masked picture for every UNet: for those that do not see it, only
        # what is drawn for it matters.
        masked = self._draw(pictured.masked if self._sees_mask else pictured.picture, generator)
        mask, beside = pipeline.prepare_mask_latents(
            pictured.mask,
            scaling * masked,
            1,
            sampling.height,
            sampling.width,
            self.dtype,
            self.device,
            generator,
            do_classifier_free_guidance=False,
        )
        if self._sees_mask:
            return latents, None, torch.cat([mask, beside], dim=1)
        return latents, Kept(clean, noise, mask), None

    def _draw(self, encoded: Any, generator: torch.Generator) -> torch.Tensor:
        """Latents as the VAE has them, [1, 4, latent rows, latent columns]."""
        latents: torch.Tensor = retrieve_latents(encoded, generator=generator).to(self.dtype)
        return latents

    def _halves(self, pipeline: Any, sample: SampleSpec, conditioning: Conditioning) -> Halves:
        ids = self._time_ids(pipeline, sample)
        positive, negative = (
            None if text is None else Half(text.words, text.pooled, time_ids.to(self.device))
            for text, time_ids in zip(
                (conditioning.positive, conditioning.negative), ids, strict=True
            )
        )
        assert positive is not None
        return Halves(positive, negative)

    def _time_ids(self, pipeline: Any, sample: SampleSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the conditional and of the unconditional half."""
        size = (sample.sampling.height, sample.sampling.width)
        width = self.pipeline.text_encoder_2.config.projection_dim
        named = {"dtype": self.dtype, "text_encoder_projection_dim": width}
        if sample.task == "text-to-image":
            ids = pipeline._get_add_time_ids(size, CROP, size, **named)
            return ids, ids
        positive, negative = pipeline._get_add_time_ids(
            size, CROP, size, *AESTHETIC_SCORES, size, CROP, size, **named
        )
        return positive, negative

    def _embedded_guidance(self, scale: float) -> torch.Tensor | None:
        width = self.unet.config.time_cond_proj_dim
        if width is None:
            return None
        embedded: torch.Tensor = self._siblings["text-to-image"].get_guidance_scale_embedding(
            torch.tensor(scale - 1).repeat(1), embedding_dim=width
        )
        return embedded.to(self.device, self.dtype)

    # ------------------------------------------------------------------------------- stepping

    def step(self, batch: Sequence[SDXLSession]) -> None:
        seen = {session.spec.id: session.scaled() for session in batch}

        def forward(context: str, sessions: Sequence[SDXLSession], texts: Sequence[Half]) -> Any:
            return self._forward([seen[s.spec.id] for s in sessions], sessions, texts)

        scales = [session.spec.sampling.guidance_scale for session in batch]
        halves.step(self._guidance, forward, batch, scales, order="negative first")

    def _forward(
        self,
        seen: Sequence[torch.Tensor],
        sessions: Sequence[SDXLSession],
        texts: Sequence[Half],
    ) -> torch.Tensor:
        """One forward with a row for each session and its half, [rows, 4, …]."""
        embedded = [s.embedded_guidance for s in sessions if s.embedded_guidance is not None]
        prediction: torch.Tensor = self.unet(
            torch.cat(list(seen)),
            torch.stack([s.timestep for s in sessions]),
            encoder_hidden_states=torch.cat([half.words for half in texts]),
            timestep_cond=torch.cat(embedded) if embedded else None,
            added_cond_kwargs={
                "text_embeds": torch.cat([half.pooled for half in texts]),
                "time_ids": torch.cat([half.time_ids for half in texts]),
            },
            return_dict=False,
        )[0]
        return prediction

    # ------------------------------------------------------------------------------- decoding

    def _to_decode(self, sessions: Sequence[SDXLSession]) -> torch.Tensor:
        vae, factor = self.pipeline.vae, self.pipeline.vae.config.scaling_factor
        latents = self._stacked(sessions).to(vae.device, vae.dtype)
        mean, std = self._statistics(latents)
        if mean is not None and std is not None:
            return latents * std / factor + mean
        return latents / factor

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Mean and deviation of the latents, if the VAE has them; [1, channels, 1, 1]."""
        config = self.pipeline.vae.config
        mean, std = (_of_channels(config.get(f"latents_{name}"), like) for name in ("mean", "std"))
        return mean, std

    def _frames(self, pixels: torch.Tensor) -> Sequence[Frames]:
        watermark = self.pipeline.watermark
        return super()._frames(pixels if watermark is None else watermark.apply_watermark(pixels))


def _sibling(kind: Any, pipeline: Any) -> Any:
    """The same components as another of the three pipelines."""
    options = ["force_zeros_for_empty_prompt"]
    if kind is not StableDiffusionXLPipeline:
        options.append("requires_aesthetics_score")
    given = {name: pipeline.config[name] for name in options if name in pipeline.config}
    return kind(**pipeline.components, **given, add_watermarker=False)


def _latent_shape(pipeline: Any, sampling: Sampling) -> tuple[int, int, int, int]:
    scale = pipeline.vae_scale_factor
    return (1, LATENT, sampling.height // scale, sampling.width // scale)


def _of_channels(values: Sequence[float] | None, like: torch.Tensor) -> torch.Tensor | None:
    """Numbers of a VAE's configuration, one a channel, as [1, channels, 1, 1]."""
    return None if values is None else torch.tensor(values).view(1, -1, 1, 1).to(like)


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> SDXLFamily:
    """This rank's part of the pipeline in `directory`, on its device; safetensors only."""
    if config.model.quantization != "none":
        raise ConfigError(
            f"--quantization {config.model.quantization} is of transformers; SDXL has a UNet. "
            "Leave it out.",
            param="quantization",
        )
    kind = next(kind for kind in KINDS.values() if kind.__name__ == pipeline_class(directory))
    return SDXLFamily(load_pipeline(kind, directory, config, mesh), mesh, config)
