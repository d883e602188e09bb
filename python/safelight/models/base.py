"""A loaded diffusers pipeline: what the adapters of the native families have in common.

`flux`, `flux2`, `qwen_image`, `sd3`, `sdxl`, `wan` and `z_image` derive from it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from safelight.config import EngineConfig
from safelight.lora.adapters import Adapters
from safelight.models import frames
from safelight.models.loading import weight_bytes
from safelight.models.plans import plan_of
from safelight.models.prompts import PromptCache
from safelight.models.scaling import Scaling
from safelight.parallel.guidance import Guidance
from safelight.parallel.mesh import Mesh
from safelight.parallel.sequence import SequenceParallel
from safelight.parallel.vae import ParallelVae

if TYPE_CHECKING:
    from safelight.models.family import Frames


class DiffusersFamily:
    """A `Family`, but for what is special: encode, begin and step."""

    _scaling: Scaling
    """Of the VAE's latents. Families that scale them otherwise override `_to_decode`."""

    def __init__(
        self, pipeline: Any, mesh: Mesh, config: EngineConfig, denoiser: Any = None
    ) -> None:
        """`denoiser`: if it is not the pipeline's transformer."""
        self.pipeline = pipeline
        self.transformer = pipeline.transformer if denoiser is None else denoiser
        self.device = mesh.device
        # Asking a module for its dtype walks all of it: 0.7 ms, too much for every step.
        self.dtype = self.transformer.dtype
        self._first = mesh.rank == 0
        self._guidance = Guidance(mesh)
        self._vae = ParallelVae(pipeline.vae, mesh, config.parallel.vae_parallel)
        self.lora = Adapters(pipeline)
        entries = config.model.prompt_cache_entries
        self._prompts = PromptCache(entries, lambda: self.lora.of_prompts)

    def describe(self) -> str:
        return f"{type(self.pipeline).__name__} on {self.device}, {self.dtype}"

    def weights(self) -> dict[str, int]:
        return weight_bytes(self.pipeline.components)

    def decodes_together(self, sessions: Sequence[Any]) -> bool:
        return self._vae.splits_decode(self._stacked(sessions).shape)

    def decode(self, sessions: Sequence[Any]) -> Sequence[Frames]:
        pixels = self._vae.decode(self._to_decode(sessions))
        return self._frames(pixels) if self._first else []

    def preview(self, session: Any) -> Frames:
        """By the whole VAE: nobody else needs to be there for it."""
        glimpse = copy.copy(session)
        glimpse.latents = session.estimate
        pixels = self._vae.whole.decode(frames.one_of(self._to_decode([glimpse])))
        return self._frames(pixels.sample)[0]

    def _to_decode(self, sessions: Sequence[Any]) -> torch.Tensor:
        """`_stacked`, scaled as the VAE has them, in its precision."""
        vae = self.pipeline.vae
        return self._scaling.unscaled(self._stacked(sessions).to(vae.device, vae.dtype))

    def _stacked(self, sessions: Sequence[Any]) -> torch.Tensor:
        """[samples, channels, (latent frames,) latent height, latent width]"""
        return torch.cat([session.latents for session in sessions])

    def _frames(self, pixels: torch.Tensor) -> Sequence[Frames]:
        """Of what the VAE made."""
        return frames.of_pictures(self.pipeline.image_processor, pixels)


def split(transformer: Any, mesh: Mesh) -> SequenceParallel:
    """The sequence of `transformer`, shared by ranks as the plan of its class says."""
    return SequenceParallel.apply(transformer, mesh, plan_of(type(transformer).__name__))
