"""What all FLUX.1 pipelines share: diffusers' own parts, called one step at a time.

With a batch of one this is the pipeline's `__call__` line by line, hence its bits. In a larger
batch every row of the one forward has its own timestep and guidance, and every sample then takes
its own sampler's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

from safelight.config import EngineConfig
from safelight.models import halves
from safelight.models.loading import weight_bytes
from safelight.models.plans import plan_of
from safelight.models.prompts import PromptCache
from safelight.models.samplers import own
from safelight.models.session import Denoising
from safelight.parallel.guidance import Guidance
from safelight.parallel.mesh import Mesh
from safelight.parallel.sequence import SequenceParallel
from safelight.parallel.vae import ParallelVae
from safelight.request import SampleSpec

if TYPE_CHECKING:
    from safelight.models.family import Frames


@dataclass(frozen=True)
class Words:
    """What the two text encoders make of a prompt."""

    text: torch.Tensor
    """T5's embeddings, [1, max_sequence_length, text_dim]."""
    pooled: torch.Tensor
    """CLIP's, [1, pooled_dim]."""


@dataclass(frozen=True)
class Conditioning:
    """What a sample is made from."""

    positive: Words
    negative: Words | None
    """None without true guidance."""
    pictures: tuple[Any, ...] = ()
    """What the VAE makes of the input pictures: distributions of latents, [1, channels, rows,
    columns] each."""


@dataclass(frozen=True)
class Repaint:
    """What is kept of a picture while the rest of it is painted anew; packed as the latents."""

    picture: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor
    """1 where it is painted, else 0."""

    def over(self, latents: torch.Tensor, scheduler: Any, later: torch.Tensor) -> torch.Tensor:
        """`latents` after a step, with what is kept as noisy as they are; `later` are the timesteps
        to come."""
        kept = self.picture
        if len(later):
            kept = scheduler.scale_noise(kept, later[:1], self.noise)
        return (1 - self.mask) * kept + self.mask * latents


@dataclass(kw_only=True)
class FluxSession(Denoising):
    """Latents are packed: [1, tokens, 4 * channels]; a token is 2x2 latents."""

    conditioning: Conditioning
    image_ids: torch.Tensor
    """Positions of the tokens, [tokens + reference tokens, 3]."""
    guidance: torch.Tensor | None
    """float32 [1]; None for a transformer without embedded guidance."""
    references: torch.Tensor | None = None
    """Tokens that the transformer sees after those of the latents, [1, reference tokens, 4 *
    channels]."""
    channels: torch.Tensor | None = None
    """More channels of the latents' tokens, [1, tokens, more channels]."""
    repaint: Repaint | None = None

    @property
    def inputs(self) -> torch.Tensor:
        """What the transformer sees."""
        seen = self.latents
        if self.references is not None:
            seen = torch.cat([seen, self.references], dim=1)
        if self.channels is not None:
            seen = torch.cat([seen, self.channels], dim=2)
        return seen

    def advance(self, noise: torch.Tensor) -> None:
        super().advance(noise)
        if self.repaint is not None:
            later = self.timesteps[self.index :]
            self.latents = self.repaint.over(self.latents, self.scheduler, later)


class FluxBase:
    """A loaded FLUX.1 pipeline, but for how its samples begin."""

    def __init__(self, pipeline: Any, mesh: Mesh, config: EngineConfig) -> None:
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
        self._prompts = PromptCache(config.model.prompt_cache_entries)
        self._pictures = PromptCache(config.model.prompt_cache_entries)

    def describe(self) -> str:
        return f"{type(self.pipeline).__name__} on {self.device}, {self.dtype}"

    # -------------------------------------------------------------------------- text and pictures

    def encode(self, sample: SampleSpec) -> Conditioning:
        sampling = sample.sampling
        length, negative = sampling.max_sequence_length, sampling.negative_prompt
        guided = (sampling.true_cfg_scale or 1) > 1 and negative != ""
        return Conditioning(
            positive=self._words(sample.prompt, length),
            negative=self._words(negative, length) if guided else None,
            pictures=self._seen(sample) if sample.inputs.images else (),
        )

    def _words(self, prompt: str, length: int) -> Words:
        def embed() -> tuple[torch.Tensor, torch.Tensor]:
            text, pooled, _ = self.pipeline.encode_prompt(
                prompt=prompt, prompt_2=None, device=self.device, max_sequence_length=length
            )
            return text.to(self.dtype), pooled.to(self.dtype)

        return Words(*self._prompts.get((prompt, length), embed))

    def _seen(self, sample: SampleSpec) -> tuple[Any, ...]:
        """What the VAE makes of the sample's pictures."""
        raise NotImplementedError

    def _distribution(self, pixels: torch.Tensor) -> Any:
        """Of the latents of a picture, [1, 3, height, width] in [-1, 1]; drawing from it takes
        random numbers."""
        vae = self.pipeline.vae
        return self._vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist

    def _scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """As the transformer knows them."""
        config = self.pipeline.vae.config
        return ((latents - config.shift_factor) * config.scaling_factor).to(self.dtype)

    # ------------------------------------------------------------------------------ the beginning

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> FluxSession:
        raise NotImplementedError

    def _from_noise(
        self,
        sample: SampleSpec,
        conditioning: Conditioning,
        latents: torch.Tensor,
        image_ids: torch.Tensor,
    ) -> FluxSession:
        """A session that takes all steps."""
        scheduler = self._scheduler(sample)
        scheduler.set_begin_index(0)
        timesteps = scheduler.timesteps
        return self._session(sample, conditioning, latents, image_ids, scheduler, timesteps)

    def _session(
        self,
        sample: SampleSpec,
        conditioning: Conditioning,
        latents: torch.Tensor,
        image_ids: torch.Tensor,
        scheduler: Any,
        timesteps: torch.Tensor,
    ) -> FluxSession:
        return FluxSession(
            spec=sample,
            conditioning=conditioning,
            latents=latents,
            image_ids=image_ids,
            guidance=self._embedded(sample),
            scheduler=scheduler,
            timesteps=timesteps,
        )

    def _embedded(self, sample: SampleSpec) -> torch.Tensor | None:
        """Guidance that is an input of the transformer, if it has that."""
        if not self.transformer.config.guidance_embeds:
            return None
        return torch.full([1], sample.sampling.guidance_scale, device=self.device)

    def _scheduler(self, sample: SampleSpec) -> Any:
        """A sampler of its own; the larger the image, the more its noise levels are shifted."""
        sampling = sample.sampling
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
        sigmas = (
            None if config.get("use_flow_sigmas", False) else np.linspace(1.0, 1 / steps, steps)
        )
        retrieve_timesteps(scheduler, steps, self.device, sigmas=sigmas, mu=mu)
        return scheduler

    # -------------------------------------------------------------------------------------- steps

    def step(self, batch: Sequence[FluxSession]) -> None:
        predictions = halves.predict(
            self._guidance,
            self._forward,
            batch,
            [s.conditioning.positive for s in batch],
            [s.conditioning.negative for s in batch],
            [s.spec.sampling.true_cfg_scale or 1.0 for s in batch],
        )
        for session, noise in zip(batch, predictions, strict=True):
            session.advance(noise)

    def _forward(
        self, context: str, sessions: Sequence[FluxSession], words: Sequence[Words]
    ) -> torch.Tensor:
        """One forward with a row for each session: all are of one size."""
        inputs = torch.cat([s.inputs for s in sessions])
        timesteps = torch.stack([s.timestep for s in sessions]).to(inputs.dtype)
        text = torch.cat([w.text for w in words])
        guidance = [s.guidance for s in sessions if s.guidance is not None]
        self._sequence.prepare(inputs.shape[1], text.shape[1])
        with self.transformer.cache_context(context):
            noise = self.transformer(
                hidden_states=inputs,
                timestep=timesteps / 1000,
                guidance=torch.cat(guidance) if guidance else None,
                pooled_projections=torch.cat([w.pooled for w in words]),
                encoder_hidden_states=text,
                # Words have no positions: `encode_prompt` gives zeros as well.
                txt_ids=text.new_zeros(text.shape[1], 3),
                img_ids=sessions[0].image_ids,
                return_dict=False,
            )[0]
        tokens: torch.Tensor = noise[:, : sessions[0].latents.shape[1]]
        return tokens

    # -------------------------------------------------------------------------------------- the end

    def weights(self) -> dict[str, int]:
        return weight_bytes(self.pipeline.components)

    def decodes_together(self, sessions: Sequence[FluxSession]) -> bool:
        return self._vae.splits_decode(self._unpacked(sessions).shape)

    def _unpacked(self, sessions: Sequence[FluxSession]) -> torch.Tensor:
        """[samples, channels, latent height, latent width]"""
        size = sessions[0].spec.sampling
        packed = torch.cat([s.latents for s in sessions])
        scale = self.pipeline.vae_scale_factor
        latents: torch.Tensor = self.pipeline._unpack_latents(
            packed, size.height, size.width, scale
        )
        return latents

    def decode(self, sessions: Sequence[FluxSession]) -> Sequence[Frames]:
        vae = self.pipeline.vae
        latents = self._unpacked(sessions).to(vae.device, vae.dtype)
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        pixels = self._vae.decode(latents)
        if not self._first:
            return []
        images = self.pipeline.image_processor.postprocess(pixels, output_type="np")
        return list((images[:, None] * 255).round().astype("uint8"))
