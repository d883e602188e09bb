"""Qwen-Image through the adapter protocol: diffusers' own parts, called one step at a time.

With a batch of one this is `QwenImagePipeline.__call__` (with an input picture
`QwenImageImg2ImgPipeline.__call__`, with a mask `QwenImageInpaintPipeline.__call__`) line by line,
conditional and unconditional forwards apart, hence its bits. In a larger batch all halves of all
samples ride in one forward, prompts padded to the longest and masked, and every sample then takes
its own sampler's step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
)
from diffusers.pipelines.qwenimage.pipeline_qwenimage import retrieve_timesteps

from safelight.cache.first_block import StepCache
from safelight.config import EngineConfig
from safelight.errors import GenerationFailed
from safelight.models import halves, samplers
from safelight.models.base import DiffusersFamily, split
from safelight.models.inputs import image
from safelight.models.pictures import PictureEncoder, fitted
from safelight.models.qwen_image.sessions import Conditioning, Grids, QwenImageSession
from safelight.models.qwen_image.texts import groups, padded
from safelight.models.scaling import ByChannel
from safelight.models.session import Kept
from safelight.parallel.mesh import Mesh
from safelight.request import Picture, SampleSpec, Sampling

if TYPE_CHECKING:
    from safelight.models.family import Frames


class QwenImageFamily(DiffusersFamily):
    """A loaded Qwen-Image pipeline: text-to-image, image-to-image and inpainting."""

    inpainting: type[DiffusionPipeline] = QwenImageInpaintPipeline
    """Made from the same components."""

    def __init__(self, pipeline: Any, mesh: Mesh, config: EngineConfig) -> None:
        super().__init__(pipeline, mesh, config)
        self._cache = StepCache.apply(self.transformer, mesh, config.model)
        self._sequence = split(self.transformer, mesh)
        self._channels = self.transformer.config.in_channels // 4
        self._positions = len(self.transformer.pos_embed.pos_freqs)
        self._scaling: ByChannel = ByChannel(pipeline.vae)
        self._pictures = PictureEncoder(self._vae, config.model.prompt_cache_entries)

    # -------------------------------------------------------------------------- conditioning

    def encode(self, sample: SampleSpec) -> Conditioning:
        sampling = sample.sampling
        guided = (sampling.true_cfg_scale or 0) > 1 and sampling.negative_prompt != ""
        return Conditioning(
            positive=self._embed(sample, sample.prompt),
            negative=self._embed(sample, sampling.negative_prompt) if guided else None,
        )

    def _embed(self, sample: SampleSpec, text: str) -> torch.Tensor:
        length = sample.sampling.max_sequence_length

        def compute() -> torch.Tensor:
            embeds, _ = self.pipeline.encode_prompt(
                prompt=text, device=self.device, max_sequence_length=length
            )
            return embeds.to(self.dtype)

        return self._prompts.get((text, length), compute)

    # ------------------------------------------------------------------------------ beginning

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> QwenImageSession:
        sampling = sample.sampling
        scheduler = self._scheduler(sampling)
        start = {
            "spec": sample,
            "conditioning": conditioning,
            "scheduler": scheduler,
            "timesteps": samplers.left(scheduler, sampling),
            "grids": self._grids(sample),
        }
        self._check_positions(conditioning, start["grids"])
        generator = torch.Generator("cpu").manual_seed(sampling.seed)
        if sample.inputs.mask is not None:
            return self._begin_inpainting(sample.inputs.mask, generator, start)
        if sample.inputs.images:
            return self._begin_with_pictures(generator, start)
        latents = self.pipeline.prepare_latents(*self._wanted(sampling, generator))
        return QwenImageSession(**start, latents=latents)

    def _grids(self, sample: SampleSpec) -> Grids:
        """As `QwenImageSession.grids`."""
        return [self._grid(sample.sampling.width, sample.sampling.height)]

    def _scheduler(self, sampling: Sampling) -> Any:
        """A sampler of its own, for an image of so many tokens: the larger, the more its noise
        levels are shifted, unless their shift is fixed."""
        scheduler = samplers.own(self.pipeline.scheduler, sampling.flow_shift)
        steps = sampling.num_inference_steps
        mu = samplers.mu(scheduler.config, math.prod(self._grid(sampling.width, sampling.height)))
        sigmas = np.linspace(1.0, 1 / steps, steps)
        retrieve_timesteps(scheduler, steps, self.device, sigmas=sigmas, mu=mu)
        return scheduler

    def _grid(self, width: int, height: int) -> tuple[int, int, int]:
        step = self.pipeline.vae_scale_factor * 2
        return 1, height // step, width // step

    def _wanted(self, sampling: Sampling, generator: torch.Generator) -> tuple[Any, ...]:
        """What every `prepare_latents` takes last."""
        size = sampling.height, sampling.width
        return 1, self._channels, *size, self.dtype, self.device, generator

    def _begin_with_pictures(
        self, generator: torch.Generator, start: dict[str, Any]
    ) -> QwenImageSession:
        """From the picture, as noisy as `strength` says."""
        sample: SampleSpec = start["spec"]
        pipeline = _sibling(QwenImageImg2ImgPipeline, self.pipeline, start["scheduler"])
        original = self._drawn(pipeline, sample, generator)
        wanted = self._wanted(sample.sampling, generator)
        latents = pipeline.prepare_latents(original, start["timesteps"][:1], *wanted)
        return QwenImageSession(**start, latents=latents)

    def _begin_inpainting(
        self, mask: Picture, generator: torch.Generator, start: dict[str, Any]
    ) -> QwenImageSession:
        sample: SampleSpec = start["spec"]
        pipeline = _sibling(self.inpainting, self.pipeline, start["scheduler"])
        original = self._drawn(pipeline, sample, generator)
        wanted = self._wanted(sample.sampling, generator)
        latents, noise, packed = pipeline.prepare_latents(original, start["timesteps"][:1], *wanted)
        masked = self._packed_mask(pipeline, mask, original, sample.sampling)
        return QwenImageSession(**start, latents=latents, kept=Kept(packed, noise, masked))

    def _packed_mask(
        self, pipeline: Any, mask: Picture, original: torch.Tensor, sampling: Sampling
    ) -> torch.Tensor:
        # The masked picture would be for transformers with more channels, of which there are none:
        # latents in its place are not encoded.
        packed: torch.Tensor
        packed, _ = pipeline.prepare_mask_latents(
            mask=fitted(pipeline.mask_processor, mask, sampling),
            masked_image=original,
            batch_size=1,
            num_channels_latents=self._channels,
            num_images_per_prompt=1,
            dtype=self.dtype,
            device=self.device,
            generator=None,
            height=sampling.height,
            width=sampling.width,
        )
        return packed

    def _drawn(self, pipeline: Any, sample: SampleSpec, generator: torch.Generator) -> torch.Tensor:
        """Latents of the picture to start from, [1, channels, 1, rows, columns]."""
        picture, sampling = sample.inputs.images[0], sample.sampling

        def pixels() -> torch.Tensor:
            size = {"height": sampling.height, "width": sampling.width}
            made: torch.Tensor = pipeline.image_processor.preprocess(self._fitted(sample), **size)
            return made.unsqueeze(2)

        key = picture.digest, sampling.width, sampling.height
        return self._scaling.scaled(self._pictures.encode(key, pixels).sample(generator))

    def _fitted(self, sample: SampleSpec) -> Any:
        """The picture, as it is before it becomes pixels of the output's size."""
        return image(sample.inputs.images[0])

    def _check_positions(self, conditioning: Conditioning, grids: Grids) -> None:
        """Positions of words begin beyond those of the pictures."""
        first = max(side // 2 for grid in grids for side in grid)
        texts = conditioning.positive, conditioning.negative
        words = max(text.shape[1] for text in texts if text is not None)
        if first + words > self._positions:
            raise GenerationFailed(
                f"The prompt has {words} tokens with its pictures; the transformer takes at most "
                f"{self._positions - first} at this size.",
                code="prompt_too_long",
            )

    # ------------------------------------------------------------------------------- stepping

    def step(self, batch: Sequence[QwenImageSession]) -> None:
        texts = halves.texts_of(batch)
        predictions = halves.both(self._guidance, self._forward, batch, *texts)
        for session, noise, base in zip(batch, *predictions, strict=True):
            if base is not None:
                noise = _guide(noise, base, session.spec.sampling.true_cfg_scale or 1.0)
            session.advance(noise)

    def _forward(
        self, context: str, sessions: Sequence[QwenImageSession], texts: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """One forward with a row for each session and its text, [rows, tokens, channels].

        Where ranks share the pictures' tokens unevenly no mask fits: prompts of different lengths
        then take a forward each.
        """
        tokens = sum(math.prod(grid) for grid in sessions[0].grids)
        rows: dict[int, torch.Tensor] = {}
        for group in groups(texts, apart=tokens % self._sequence.ranks != 0):
            made = self._run(context, [sessions[i] for i in group], [texts[i] for i in group])
            rows |= zip(group, made.split(1), strict=True)
        return torch.cat([rows[index] for index in range(len(texts))])

    def _run(
        self, context: str, sessions: Sequence[QwenImageSession], texts: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        latents = torch.cat([s.input for s in sessions])
        timesteps = torch.stack([s.timestep for s in sessions]).to(latents.dtype)
        text, mask = padded(texts, self._sequence.ranks)
        self._sequence.prepare(latents.shape[1], text.shape[1])
        with self._cache.context(context, sessions):
            noise = self.transformer(
                hidden_states=latents,
                timestep=timesteps / 1000,
                encoder_hidden_states_mask=mask,
                encoder_hidden_states=text,
                img_shapes=[s.grids for s in sessions],
                return_dict=False,
            )[0]
        return noise[:, : sessions[0].latents.shape[1]]

    # ------------------------------------------------------------------------------- decoding

    def _stacked(self, sessions: Sequence[QwenImageSession]) -> torch.Tensor:
        """[samples, channels, 1, latent height, latent width]"""
        size = sessions[0].spec.sampling
        packed = super()._stacked(sessions)
        scale = self.pipeline.vae_scale_factor
        return self.pipeline._unpack_latents(packed, size.height, size.width, scale)

    def _frames(self, pixels: torch.Tensor) -> Sequence[Frames]:
        return super()._frames(pixels[:, :, 0])


def _guide(noise: torch.Tensor, base: torch.Tensor, scale: float) -> torch.Tensor:
    """The guided prediction, every token as long as the conditional one."""
    guided = base + scale * (noise - base)
    length = torch.norm(noise, dim=-1, keepdim=True)
    return guided * (length / torch.norm(guided, dim=-1, keepdim=True))


def _sibling(kind: type[DiffusionPipeline], pipeline: DiffusionPipeline, scheduler: Any) -> Any:
    """Another pipeline of the same components, but for the sampler: one sample's own."""
    return kind(**{**pipeline.components, "scheduler": scheduler})
