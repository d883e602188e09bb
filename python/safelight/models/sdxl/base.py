"""What Stable Diffusion XL does with every sample, however it begins: encode, denoise, decode.

In a batch, whose samples may be of different tasks, every row of the one forward has its own
timestep, and every sample then takes its own sampler's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from safelight.config import EngineConfig
from safelight.models import halves
from safelight.models.base import DiffusersFamily
from safelight.models.sdxl.pictures import Pictured, Pictures
from safelight.models.sdxl.session import Half, SDXLSession
from safelight.models.sdxl.spec import REPAINTING
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec, Task

if TYPE_CHECKING:
    from safelight.models.family import Frames

KINDS: dict[Task, Any] = {
    "text-to-image": StableDiffusionXLPipeline,
    "image-to-image": StableDiffusionXLImg2ImgPipeline,
    "inpainting": StableDiffusionXLInpaintPipeline,
}


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


class SDXLBase(DiffusersFamily):
    """A loaded pipeline, but for how its samples begin; of which class, does not matter."""

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


def _of_channels(values: Sequence[float] | None, like: torch.Tensor) -> torch.Tensor | None:
    """Numbers of a VAE's configuration, one a channel, as [1, channels, 1, 1]."""
    return None if values is None else torch.tensor(values).view(1, -1, 1, 1).to(like)
