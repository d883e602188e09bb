"""How samples of Stable Diffusion XL begin: from noise, from a picture, or from a part of one.

With a batch of one this is the `__call__` of `StableDiffusionXLPipeline`, or of its siblings for
image-to-image and inpainting, line by line, hence its bits.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    retrieve_latents,
    retrieve_timesteps,
)

from safelight.config import EngineConfig
from safelight.errors import ConfigError
from safelight.models.loading import load_pipeline
from safelight.models.registry import pipeline_class
from safelight.models.samplers import own
from safelight.models.sdxl.base import KINDS, Conditioning, SDXLBase
from safelight.models.sdxl.pictures import Pictured
from safelight.models.sdxl.session import Half, Halves, SDXLSession
from safelight.models.sdxl.spec import LATENT
from safelight.models.session import Kept
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec, Sampling

CROP = (0, 0)
AESTHETIC_SCORES = (6.0, 2.5)
"""What the pipelines ask the refiner for, and what its unconditional half."""


class SDXLFamily(SDXLBase):
    """A loaded Stable Diffusion XL pipeline."""

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


def _latent_shape(pipeline: Any, sampling: Sampling) -> tuple[int, int, int, int]:
    scale = pipeline.vae_scale_factor
    return (1, LATENT, sampling.height // scale, sampling.width // scale)


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
