"""Z-Image through the adapter protocol: diffusers' own parts, called one step at a time.

With a batch of one this is `ZImagePipeline.__call__` (and, with an input picture,
`ZImageImg2ImgPipeline.__call__`) line by line, hence its bits. In a larger batch the one forward
has a list of latents, whatever their sizes, with a timestep each, and prompts of any lengths; every
sample then takes its own sampler's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ZImagePipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.z_image.pipeline_z_image import (
    get_default_z_image_sigmas,
    retrieve_timesteps,
)
from diffusers.utils.torch_utils import randn_tensor

from safelight.config import EngineConfig
from safelight.models import halves, samplers
from safelight.models.base import DiffusersFamily, split
from safelight.models.loading import load_pipeline
from safelight.models.pictures import PictureEncoder
from safelight.models.scaling import OfAll
from safelight.models.session import Denoising
from safelight.models.z_image.spec import PADDING
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec, Sampling

if TYPE_CHECKING:
    from safelight.models.family import Frames


@dataclass(frozen=True)
class Conditioning:
    """Prompt embeddings, [words, text_dim] each, and the input picture."""

    positive: torch.Tensor
    negative: torch.Tensor | None
    """None without guidance."""
    picture: DiagonalGaussianDistribution | None
    """Of the picture's latents; None if there is no picture."""


@dataclass(kw_only=True)
class ZImageSession(Denoising):
    """Latents are [1, channels, rows, columns], float32 after the first step at the latest."""

    conditioning: Conditioning


class ZImageFamily(DiffusersFamily):
    """A loaded Z-Image pipeline."""

    def __init__(self, pipeline: ZImagePipeline, mesh: Mesh, config: EngineConfig) -> None:
        super().__init__(pipeline, mesh, config)
        self._sequence = split(self.transformer, mesh)
        self._scaling = OfAll(pipeline.vae)
        self._pictures = PictureEncoder(self._vae, config.model.prompt_cache_entries)

    # -------------------------------------------------------------------------- conditioning

    def encode(self, sample: SampleSpec) -> Conditioning:
        sampling, pictures = sample.sampling, sample.inputs.images
        length = sampling.max_sequence_length
        guided = sampling.guidance_scale > 0  # not 1: see `_guide`
        processor = self.pipeline.image_processor
        return Conditioning(
            positive=self._embed(sample.prompt, length),
            negative=self._embed(sampling.negative_prompt, length) if guided else None,
            picture=self._pictures.fitted(processor, pictures[0], sampling) if pictures else None,
        )

    def _embed(self, text: str, length: int) -> torch.Tensor:
        def compute() -> torch.Tensor:
            (embeds,), _ = self.pipeline.encode_prompt(
                prompt=text,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=length,
            )
            return embeds.to(self.dtype)

        return self._prompts.get((text, length), compute)

    # ------------------------------------------------------------------------------ beginning

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> ZImageSession:
        sampling = sample.sampling
        generator = torch.Generator("cpu").manual_seed(sampling.seed)
        scheduler = self._scheduler(sampling)
        timesteps = samplers.left(scheduler, sampling)
        if conditioning.picture is None:
            latents = self._noise(sampling, generator)
        else:
            clean = self._scaling.scaled(conditioning.picture.sample(generator)).to(self.dtype)
            noise = randn_tensor(clean.shape, generator, self.device, self.dtype)
            latents = scheduler.scale_noise(clean, timesteps[:1], noise)
        return ZImageSession(
            spec=sample,
            conditioning=conditioning,
            latents=latents,
            scheduler=scheduler,
            timesteps=timesteps,
        )

    def _noise(self, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
        return self.pipeline.prepare_latents(
            1,
            self.transformer.in_channels,
            sampling.height,
            sampling.width,
            torch.float32,
            self.device,
            generator,
        )

    def _scheduler(self, sampling: Sampling) -> Any:
        """A sampler of its own; its shift is fixed, or grows with the image."""
        scheduler = samplers.own(self.pipeline.scheduler, sampling.flow_shift)
        side, steps = 2 * self.pipeline.vae_scale_factor, sampling.num_inference_steps
        tokens = (sampling.height // side) * (sampling.width // side)
        mu = samplers.mu(scheduler.config, tokens)
        sigmas = get_default_z_image_sigmas(steps)
        retrieve_timesteps(scheduler, steps, self.device, sigmas=sigmas, mu=mu)
        return scheduler

    # ------------------------------------------------------------------------------- stepping

    def step(self, batch: Sequence[ZImageSession]) -> None:
        texts = halves.texts_of(batch)
        predictions = halves.both(
            self._guidance, self._forward, batch, *texts, order="positive first"
        )
        for session, conditional, unconditional in zip(batch, *predictions, strict=True):
            guided = _guide(conditional, unconditional, session.spec.sampling.guidance_scale)
            session.advance(-guided.unsqueeze(0).squeeze(2))

    def _forward(
        self, context: str, sessions: Sequence[ZImageSession], texts: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """One forward with a row for each session and its text: [channels, 1, rows, columns]."""
        latents = [s.latents[0].to(self.dtype).unsqueeze(1) for s in sessions]
        timesteps = torch.stack([s.timestep for s in sessions])
        self._sequence.prepare(max(map(_tokens, latents, texts)))
        rows: list[torch.Tensor] = self.transformer(
            latents, (1000 - timesteps) / 1000, list(texts), return_dict=False
        )[0]
        return rows

    # ------------------------------------------------------------------------------- decoding

    def decodes_together(self, sessions: Sequence[ZImageSession]) -> bool:
        return any(super(ZImageFamily, self).decodes_together(group) for group in _alike(sessions))

    def decode(self, sessions: Sequence[ZImageSession]) -> Sequence[Frames]:
        """Those of one size at once."""
        frames: dict[str, Frames] = {}
        for group in _alike(sessions):
            if self._first or super().decodes_together(group):
                names = [session.spec.id for session in group]
                frames |= zip(names, super().decode(group), strict=self._first)
        return [frames[session.spec.id] for session in sessions] if self._first else []


def _guide(
    conditional: torch.Tensor, unconditional: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """In float32. Counted from the conditional prediction: a scale of 0 is none at all."""
    conditional = conditional.float()
    if unconditional is None:
        return conditional
    return conditional + scale * (conditional - unconditional.float())


def _tokens(latents: torch.Tensor, text: torch.Tensor) -> int:
    """Of a row: image and text are padded, then joined."""
    rows, columns = latents.shape[-2:]
    return sum(-(-n // PADDING) * PADDING for n in (rows // 2 * (columns // 2), len(text)))


def _alike(sessions: Sequence[ZImageSession]) -> list[list[ZImageSession]]:
    """Put together by size."""
    groups: dict[torch.Size, list[ZImageSession]] = {}
    for session in sessions:
        groups.setdefault(session.latents.shape, []).append(session)
    return list(groups.values())


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> ZImageFamily:
    """This rank's part of the pipeline in `directory`, on its device; safetensors only."""
    return ZImageFamily(load_pipeline(ZImagePipeline, directory, config, mesh), mesh, config)
