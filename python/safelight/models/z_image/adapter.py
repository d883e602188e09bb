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
    calculate_shift,
    get_default_z_image_sigmas,
    retrieve_timesteps,
)
from diffusers.utils.torch_utils import randn_tensor

from safelight.config import EngineConfig
from safelight.models.loading import load_pipeline, weight_bytes
from safelight.models.pictures import PictureEncoder, shorten
from safelight.models.plans import plan_of
from safelight.models.prompts import PromptCache
from safelight.models.rows import predict
from safelight.models.samplers import own
from safelight.models.session import Denoising
from safelight.models.z_image.spec import PADDING
from safelight.parallel.guidance import Guidance
from safelight.parallel.mesh import Mesh
from safelight.parallel.sequence import SequenceParallel
from safelight.parallel.vae import ParallelVae
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


class ZImageFamily:
    """A loaded Z-Image pipeline."""

    def __init__(self, pipeline: ZImagePipeline, mesh: Mesh, config: EngineConfig) -> None:
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
        entries = config.model.prompt_cache_entries
        self._prompts = PromptCache(entries)
        self._pictures = PictureEncoder(self._vae, pipeline.image_processor, entries)

    def describe(self) -> str:
        return f"{type(self.pipeline).__name__} on {self.device}, {self.dtype}"

    # -------------------------------------------------------------------------- conditioning

    def encode(self, sample: SampleSpec) -> Conditioning:
        sampling, pictures = sample.sampling, sample.inputs.images
        length = sampling.max_sequence_length
        guided = sampling.guidance_scale > 0  # not 1: see `_guide`
        size = sampling.width, sampling.height
        return Conditioning(
            positive=self._embed(sample.prompt, length),
            negative=self._embed(sampling.negative_prompt, length) if guided else None,
            picture=self._pictures.encode(pictures[0], *size) if pictures else None,
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
        strength = sampling.strength or 1.0  # none without a picture: all steps
        timesteps = shorten(scheduler, sampling.num_inference_steps, strength)
        if conditioning.picture is None:
            latents = self._noise(sampling, generator)
        else:
            clean = self._pictures.draw(conditioning.picture, generator).to(self.dtype)
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
        scheduler = own(self.pipeline.scheduler, sampling.flow_shift)
        config, step = scheduler.config, 2 * self.pipeline.vae_scale_factor
        mu = calculate_shift(
            (sampling.height // step) * (sampling.width // step),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        steps = sampling.num_inference_steps
        sigmas = get_default_z_image_sigmas(steps)
        retrieve_timesteps(scheduler, steps, self.device, sigmas=sigmas, mu=mu)
        return scheduler

    # ------------------------------------------------------------------------------- stepping

    def step(self, batch: Sequence[ZImageSession]) -> None:
        noise, bases = predict(self._guidance, batch, self._forward, unconditional_first=False)
        for session, conditional, unconditional in zip(batch, noise, bases, strict=True):
            guided = _guide(conditional, unconditional, session.spec.sampling.guidance_scale)
            session.advance(-guided.unsqueeze(0).squeeze(2))

    def _forward(
        self, sessions: Sequence[ZImageSession], texts: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """One forward with a row for each session and its text: [channels, 1, rows, columns]."""
        latents = [s.latents[0].to(self.dtype).unsqueeze(1) for s in sessions]
        timesteps = torch.stack([s.timestep for s in sessions])
        self._sequence.prepare(max(map(_tokens, latents, texts)))
        rows: list[torch.Tensor] = self.transformer(
            latents, (1000 - timesteps) / 1000, list(texts), return_dict=False
        )[0]
        return rows

    def weights(self) -> dict[str, int]:
        return weight_bytes(self.pipeline.components)

    # ------------------------------------------------------------------------------- decoding

    def decodes_together(self, sessions: Sequence[ZImageSession]) -> bool:
        return any(
            self._vae.splits_decode((len(group), *sessions[group[0]].latents.shape[1:]))
            for group in _alike(sessions)
        )

    def decode(self, sessions: Sequence[ZImageSession]) -> Sequence[Frames]:
        frames: dict[int, Frames] = {}
        for group in _alike(sessions):
            latents = torch.cat([sessions[index].latents for index in group])
            if self._first or self._vae.splits_decode(latents.shape):
                frames |= dict(zip(group, self._frames(latents), strict=True))
        return [frames[index] for index in range(len(sessions))] if self._first else []

    def _frames(self, latents: torch.Tensor) -> Sequence[Frames]:
        """Of latents of one size."""
        vae = self.pipeline.vae
        latents = latents.to(vae.device, vae.dtype)
        pixels = self._vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor)
        images = self.pipeline.image_processor.postprocess(pixels, output_type="np")
        return list((images[:, None] * 255).round().astype("uint8"))


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


def _alike(sessions: Sequence[ZImageSession]) -> list[list[int]]:
    """Indices of the sessions, put together by size."""
    groups: dict[torch.Size, list[int]] = {}
    for index, session in enumerate(sessions):
        groups.setdefault(session.latents.shape, []).append(index)
    return list(groups.values())


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> ZImageFamily:
    """This rank's part of the pipeline in `directory`, on its device; safetensors only."""
    return ZImageFamily(load_pipeline(ZImagePipeline, directory, config, mesh), mesh, config)
