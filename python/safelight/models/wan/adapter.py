"""Wan through the adapter protocol: diffusers' own parts, called one step at a time.

With a batch of one this is `__call__` of `WanPipeline` or `WanImageToVideoPipeline` line by line,
hence its bits. The two are made of the same parts: a model whose every token has its own timestep
(Wan 2.2 TI2V-5B) does what both do, whichever its directory names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import WanImageToVideoPipeline, WanPipeline

from safelight.config import EngineConfig
from safelight.models import frames, samplers
from safelight.models.base import DiffusersFamily
from safelight.models.loading import load_pipeline
from safelight.models.registry import pipeline_class
from safelight.models.scaling import ByChannel
from safelight.models.wan.experts import Expert
from safelight.models.wan.pictures import Pictures
from safelight.models.wan.sessions import Conditioning, GuidedByChannels, TimedByToken, WanSession
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec, Sampling

if TYPE_CHECKING:
    from safelight.models.family import Frames

PIPELINES = {kind.__name__: kind for kind in (WanPipeline, WanImageToVideoPipeline)}


class WanFamily(DiffusersFamily):
    """A loaded Wan pipeline."""

    def __init__(self, pipeline: Any, mesh: Mesh, config: EngineConfig) -> None:
        super().__init__(pipeline, mesh, config)
        transformers = (pipeline.transformer, pipeline.transformer_2)
        self._experts = [Expert(one, mesh, config.model) for one in transformers if one is not None]
        self._text_dtype = pipeline.text_encoder.dtype
        self._scaling = ByChannel(pipeline.vae)
        entries = config.model.prompt_cache_entries
        self._pictures = Pictures(pipeline, self._vae, self._scaling, self.device, entries)

    def encode(self, sample: SampleSpec) -> Conditioning:
        sampling = sample.sampling
        length = sampling.max_sequence_length
        guided = sampling.guidance_scale > 1
        vision, known = self._seen(sample)
        return Conditioning(
            positive=self._embed(sample.prompt, length),
            negative=self._embed(sampling.negative_prompt, length) if guided else None,
            vision=vision,
            known=known,
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

    def _seen(self, sample: SampleSpec) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """`vision` and `known` of a sample's conditioning."""
        if sample.task != "image-to-video":
            return None, None
        images, vision = sample.inputs.images, None
        if self.transformer.config.image_dim is not None:
            vision = self._pictures.vision(images, self.dtype)
        encoded = self._pictures.frame if self._timed else self._pictures.video
        return vision, encoded(images, sample.sampling)

    @property
    def _timed(self) -> bool:
        """Whether every token has its own timestep."""
        return bool(self.pipeline.config.expand_timesteps)

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> WanSession:
        sampling, known = sample.sampling, conditioning.known
        scheduler = samplers.own(self.pipeline.scheduler, sampling.flow_shift)
        scheduler.set_timesteps(sampling.num_inference_steps, device=self.device)
        scheduler.set_begin_index(0)
        latents = self._noise(sampling)
        common: dict[str, Any] = {
            "spec": sample,
            "conditioning": conditioning,
            "latents": latents,
            "scheduler": scheduler,
            "timesteps": scheduler.timesteps,
            "switch": self._switch(scheduler),
        }
        if self._timed:
            free = latents.new_ones(1, 1, *latents.shape[2:])
            if known is not None:
                free[:, :, 0] = 0
            return TimedByToken(**common, free=free, known=known)
        if known is not None:
            return GuidedByChannels(**common, known=known)
        return WanSession(**common)

    def _noise(self, sampling: Sampling) -> torch.Tensor:
        # Both pipelines draw it alike, but the other's method encodes the picture as well.
        noise: torch.Tensor = WanPipeline.prepare_latents(
            self.pipeline,
            1,
            self.pipeline.vae.config.z_dim,
            sampling.height,
            sampling.width,
            sampling.num_frames,
            torch.float32,
            self.device,
            torch.Generator("cpu").manual_seed(sampling.seed),
        )
        return noise

    def _switch(self, scheduler: Any) -> int:
        """Steps whose noise is that of the first expert; timesteps fall."""
        ratio = self.pipeline.config.boundary_ratio
        if ratio is None:
            return len(scheduler.timesteps)
        return int((scheduler.timesteps >= ratio * scheduler.config.num_train_timesteps).sum())

    def step(self, batch: Sequence[WanSession]) -> None:
        # All are told apart before any takes its step, which may be its last with this expert.
        shares = [[s for s in batch if s.expert == turn] for turn in range(len(self._experts))]
        for expert, share in zip(self._experts, shares, strict=True):
            if share:
                expert.step(share)

    def _stacked(self, sessions: Sequence[WanSession]) -> torch.Tensor:
        return torch.cat([session.result for session in sessions])

    def _frames(self, pixels: torch.Tensor) -> Sequence[Frames]:
        return frames.of_videos(self.pipeline.video_processor, pixels)


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> WanFamily:
    """This rank's part of the pipeline in `directory`, on its device; safetensors only."""
    kind = PIPELINES[pipeline_class(directory)]
    return WanFamily(load_pipeline(kind, directory, config, mesh), mesh, config)
