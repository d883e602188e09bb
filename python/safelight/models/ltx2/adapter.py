"""LTX-2 through the adapter protocol: diffusers' own parts, called one step at a time.

With a batch of one this is `LTX2Pipeline.__call__` line by line, or, with a first picture, that
of `LTX2ImageToVideoPipeline`, hence their bits. A step is three forwards, as in the pipelines: with
and without the prompt in one, then with attention left out, then with video and sound apart; each
has a row for every sample. With CFG parallelism a rank has two of the four.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import LTX2ImageToVideoPipeline, LTX2Pipeline
from diffusers.pipelines.ltx2.pipeline_ltx2 import calculate_shift, retrieve_timesteps
from diffusers.pipelines.ltx2.pipeline_ltx2_image2video import retrieve_latents
from diffusers.pipelines.ltx2.utils import resolve_default_image_crf
from PIL import Image

from safelight.config import EngineConfig
from safelight.lora.adapters import Adapters
from safelight.models import frames
from safelight.models.family import Clip
from safelight.models.inputs import image
from safelight.models.loading import load_pipeline, weight_bytes
from safelight.models.ltx2.compression import compressed
from safelight.models.ltx2.guidance import PERTURBED_BLOCKS, SOUND_SCALE, Predictions, guided
from safelight.models.ltx2.sessions import Conditioning, LTX2Session, Text, behind, rows
from safelight.models.plans import plan_of
from safelight.models.prompts import PromptCache
from safelight.models.samplers import own
from safelight.parallel.guidance import Guidance
from safelight.parallel.mesh import Mesh
from safelight.parallel.sequence import SequenceParallel
from safelight.parallel.vae import ParallelVae
from safelight.request import Picture, SampleSpec, Sampling

if TYPE_CHECKING:
    from safelight.models.family import Frames


class LTX2Family:
    """A loaded LTX-2 pipeline."""

    def __init__(self, pipeline: LTX2Pipeline, mesh: Mesh, config: EngineConfig) -> None:
        self.pipeline = pipeline
        self.transformer = pipeline.transformer
        self._first = mesh.rank == 0
        self._guidance = Guidance(mesh)
        plan = plan_of(type(self.transformer).__name__)
        self._sequence = SequenceParallel.apply(self.transformer, mesh, plan)
        self._vae = ParallelVae(pipeline.vae, mesh, config.parallel.vae_parallel)
        self.device = mesh.device
        self.dtype = self.transformer.dtype
        # What the transformer is fed has the text's precision, as in the pipeline.
        self._text_dtype = pipeline.text_encoder.dtype
        self.lora = Adapters(pipeline)
        entries = config.model.prompt_cache_entries
        self._prompts = PromptCache(entries, lambda: self.lora.of_prompts)
        self._pictures = PromptCache(entries)
        # It resizes pictures with another filter than the pipeline for text does.
        self._resizer = LTX2ImageToVideoPipeline(**pipeline.components).video_processor

    def describe(self) -> str:
        return f"{type(self.pipeline).__name__} on {self.device}, {self.dtype}"

    # ---------------------------------------------------------------------------- what is given

    def encode(self, sample: SampleSpec) -> Conditioning:
        sampling = sample.sampling
        prompts = (sample.prompt, sampling.negative_prompt)
        length = sampling.max_sequence_length
        positive, negative = self._prompts.get(
            (prompts, length), lambda: self._texts(*prompts, length)
        )
        first = None
        if sample.task == "image-to-video":
            picture = sample.inputs.images[0]
            key = (picture.digest, sampling.width, sampling.height)
            first = self._pictures.get(key, lambda: self._first_tokens(picture, sampling))
        return Conditioning(positive, negative, first)

    def _texts(self, prompt: str, negative: str, length: int) -> tuple[Text, Text]:
        """Both at once, as the pipeline does it; the encoder's hidden states are too large to be
        kept apart."""
        embeds, mask, negative_embeds, negative_mask = self.pipeline.encode_prompt(
            prompt=prompt, negative_prompt=negative, max_sequence_length=length, device=self.device
        )
        pair = self.pipeline.connectors(
            torch.cat([negative_embeds, embeds]),
            torch.cat([negative_mask, mask]),
            padding_side=self.pipeline.tokenizer.padding_side,
        )
        base, prompted = zip(*(tensor.split(1) for tensor in pair), strict=True)
        return Text(*prompted), Text(*base)

    def _first_tokens(self, picture: Picture, sampling: Sampling) -> torch.Tensor:
        pixels = np.array(image(picture).convert("RGB"))
        squeezed = compressed(pixels, resolve_default_image_crf(self.pipeline.text_encoder))
        size = {"height": sampling.height, "width": sampling.width}
        frame = self._resizer.preprocess(Image.fromarray(squeezed), **size)
        frame = frame.to(self.device, self._text_dtype).unsqueeze(2)
        vae = self.pipeline.vae
        latents = retrieve_latents(self._vae.encode(frame.to(vae.dtype)), None, "argmax")
        latents = self.pipeline._normalize_latents(
            latents.to(torch.float32), vae.latents_mean, vae.latents_std
        )
        return self._packed(latents)

    def _packed(self, latents: torch.Tensor) -> torch.Tensor:
        """[1, channels, frames, rows, columns] to [1, tokens, channels]."""
        patch = self.transformer.config.patch_size
        packed: torch.Tensor = self.pipeline._pack_latents(latents, patch, 1)
        return packed

    # -------------------------------------------------------------------------------- the start

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> LTX2Session:
        sampling = sample.sampling
        generator = torch.Generator("cpu").manual_seed(sampling.seed)
        latents = self._noise(sampling, generator)
        sound = self._sound_noise(sampling, generator)
        if (first := conditioning.first) is not None:
            latents = behind(first, latents[:, first.shape[1] :])
        scheduler = self._scheduler(sampling, latents.shape[1])
        grid = self._grid(sampling)
        rope, sound_rope = self.transformer.rope, self.transformer.audio_rope
        return LTX2Session(
            spec=sample,
            conditioning=conditioning,
            latents=latents,
            sound=sound,
            scheduler=scheduler,
            sound_scheduler=copy.deepcopy(scheduler),
            timesteps=scheduler.timesteps,
            grid=grid,
            places=rope.prepare_video_coords(1, *grid, self.device, fps=float(sampling.fps)),
            moments=sound_rope.prepare_audio_coords(1, sound.shape[1], self.device),
        )

    def _noise(self, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
        latents: torch.Tensor = self.pipeline.prepare_latents(
            1,
            self.transformer.config.in_channels,
            sampling.height,
            sampling.width,
            sampling.num_frames,
            dtype=torch.float32,
            device=self.device,
            generator=generator,
        )
        return latents

    def _sound_noise(self, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
        pipeline, vae = self.pipeline, self.pipeline.audio_vae
        rate = (
            pipeline.audio_sampling_rate
            / pipeline.audio_hop_length
            / float(pipeline.audio_vae_temporal_compression_ratio)
        )
        latents: torch.Tensor = pipeline.prepare_audio_latents(
            1,
            num_channels_latents=vae.config.latent_channels,
            audio_latent_length=round(sampling.num_frames / sampling.fps * rate),
            num_mel_bins=vae.config.mel_bins,
            dtype=torch.float32,
            device=self.device,
            generator=generator,
        )
        return latents

    def _grid(self, sampling: Sampling) -> tuple[int, int, int]:
        spatial = self.pipeline.vae_spatial_compression_ratio
        frames = (sampling.num_frames - 1) // self.pipeline.vae_temporal_compression_ratio + 1
        return frames, sampling.height // spatial, sampling.width // spatial

    def _scheduler(self, sampling: Sampling, tokens: int) -> Any:
        """A sampler of its own; the larger the video, the more its noise levels are shifted."""
        scheduler = own(self.pipeline.scheduler, sampling.flow_shift)
        config, steps = scheduler.config, sampling.num_inference_steps
        mu = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 1024),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.95),
            config.get("max_shift", 2.05),
        )
        sigmas = np.linspace(1.0, 1 / steps, steps)
        retrieve_timesteps(scheduler, steps, self.device, sigmas=sigmas, mu=mu)
        scheduler.set_begin_index(0)
        return scheduler

    # --------------------------------------------------------------------------------- the steps

    def step(self, batch: Sequence[LTX2Session]) -> None:
        predicted = zip(batch, *self._halves(batch), *self._weakened(batch), strict=True)
        for session, *predictions in predicted:
            self._advance(session, predictions)

    def _halves(self, batch: Sequence[LTX2Session]) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions with and without the prompt, a row for each sample."""
        positive = [session.conditioning.positive for session in batch]
        negative = [session.conditioning.negative for session in batch]
        if self._guidance.split:
            mine = negative if self._guidance.unconditional else positive
            return self._guidance.exchange(self._forward("cond_uncond", batch, mine))
        both = self._forward("cond_uncond", [*batch, *batch], [*negative, *positive])
        return both[len(batch) :], both[: len(batch)]

    def _weakened(self, batch: Sequence[LTX2Session]) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions with attention left out, and with video and sound apart."""
        if not self._guidance.split:
            return self._perturbed(batch), self._isolated(batch)
        mine = self._isolated if self._guidance.unconditional else self._perturbed
        return self._guidance.exchange(mine(batch))

    def _perturbed(self, batch: Sequence[LTX2Session]) -> torch.Tensor:
        texts = [session.conditioning.positive for session in batch]
        return self._forward("uncond_stg", batch, texts, blocks=PERTURBED_BLOCKS)

    def _isolated(self, batch: Sequence[LTX2Session]) -> torch.Tensor:
        texts = [session.conditioning.positive for session in batch]
        return self._forward("uncond_modality", batch, texts, isolated=True)

    def _forward(
        self,
        context: str,
        batch: Sequence[LTX2Session],
        texts: Sequence[Text],
        *,
        isolated: bool = False,
        blocks: list[int] | None = None,
    ) -> torch.Tensor:
        """One forward; a row has the velocities of the video and of the sound behind one another,
        flat, float32."""
        latents = rows([s.latents for s in batch]).to(self._text_dtype)
        sound = rows([s.sound for s in batch]).to(self._text_dtype)
        sigmas = torch.stack([s.timestep for s in batch])
        mask = rows([text.mask for text in texts])
        frames, height, width = batch[0].grid
        self._sequence.prepare(latents.shape[1], mask.shape[1])
        with self.transformer.cache_context(context):
            video, audio = self.transformer(
                hidden_states=latents,
                audio_hidden_states=sound,
                encoder_hidden_states=rows([text.video for text in texts]),
                audio_encoder_hidden_states=rows([text.sound for text in texts]),
                timestep=self._timesteps(batch, sigmas),
                audio_timestep=sigmas,
                sigma=sigmas,
                encoder_attention_mask=mask,
                audio_encoder_attention_mask=mask,
                num_frames=frames,
                height=height,
                width=width,
                fps=float(batch[0].spec.sampling.fps),
                audio_num_frames=sound.shape[1],
                video_coords=rows([s.places for s in batch]),
                audio_coords=rows([s.moments for s in batch]),
                isolate_modalities=isolated,
                spatio_temporal_guidance_blocks=blocks,
                use_cross_timestep=True,
                return_dict=False,
            )
        return torch.cat([video.float().flatten(1), audio.float().flatten(1)], dim=1)

    def _timesteps(self, batch: Sequence[LTX2Session], sigmas: torch.Tensor) -> torch.Tensor:
        """[rows], or [rows, tokens] where some are held."""
        if batch[0].held:
            return torch.stack([s.token_timesteps() for s in batch])
        if self._sequence.ranks > 1:
            # The sequence's plan gives every rank its share of them.
            return sigmas[:, None].expand(-1, self._sequence.ranks)
        return sigmas

    def _advance(self, session: LTX2Session, predictions: Sequence[torch.Tensor]) -> None:
        latents, sound = session.latents, session.sound
        parts = [flat.split([latents.numel(), sound.numel()]) for flat in predictions]
        video = Predictions(*(part.view_as(latents) for part, _ in parts))
        heard = Predictions(*(part.view_as(sound) for _, part in parts))
        scale, step = session.spec.sampling.guidance_scale, session.index
        session.follow(
            guided(self.pipeline, video, latents, session.scheduler, step, scale),
            guided(self.pipeline, heard, sound, session.sound_scheduler, step, SOUND_SCALE),
        )

    # ----------------------------------------------------------------------------------- the end

    def weights(self) -> dict[str, int]:
        return weight_bytes(self.pipeline.components)

    def decodes_together(self, sessions: Sequence[LTX2Session]) -> bool:
        return self._vae.splits_decode(self._unpacked(sessions).shape)

    def _unpacked(self, sessions: Sequence[LTX2Session]) -> torch.Tensor:
        """[samples, channels, latent frames, latent height, latent width]"""
        return self._in_frames(rows([s.latents for s in sessions]), sessions[0].grid)

    def _in_frames(self, packed: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        patch = self.transformer.config.patch_size
        unpacked: torch.Tensor = self.pipeline._unpack_latents(packed, *grid, patch, 1)
        return unpacked

    def decode(self, sessions: Sequence[LTX2Session]) -> Sequence[Clip]:
        latents, timestep = self._to_decode(self._unpacked(sessions))
        video = self._vae.decode(latents, temb=timestep)
        if not self._first:
            return []
        made = frames.of_videos(self.pipeline.video_processor, video)
        rate = self.pipeline.vocoder.config.output_sampling_rate
        clips = zip(made, self._sounds(sessions), strict=True)
        return [Clip(video, sound, rate) for video, sound in clips]

    def preview(self, session: LTX2Session) -> Frames:
        assert session.estimate is not None
        one = frames.one_of(self._in_frames(session.estimate, session.grid))
        video = self.pipeline.vae.decode(*self._to_decode(one)).sample
        return frames.of_videos(self.pipeline.video_processor, video)[0]

    def _to_decode(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scaled as the VAE has them, in its precision; and a timestep, if it wants one."""
        vae = self.pipeline.vae
        latents = self.pipeline._denormalize_latents(
            latents.to(self._text_dtype),
            vae.latents_mean,
            vae.latents_std,
            vae.config.scaling_factor,
        )
        # The pipeline adds no noise here by default: its scale is that of the timestep, 0.
        still = torch.zeros(len(latents), device=self.device, dtype=latents.dtype)
        return latents.to(vae.dtype), still if vae.config.timestep_conditioning else None

    def _sounds(self, sessions: Sequence[LTX2Session]) -> Sequence[Any]:
        """float32 [samples, channels] of each."""
        pipeline, vae = self.pipeline, self.pipeline.audio_vae
        latents = rows([s.sound for s in sessions])
        latents = pipeline._denormalize_audio_latents(latents, vae.latents_mean, vae.latents_std)
        bins = vae.config.mel_bins // pipeline.audio_vae_mel_compression_ratio
        latents = pipeline._unpack_audio_latents(latents, latents.shape[1], num_mel_bins=bins)
        spectrograms = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        sounds = pipeline.vocoder(spectrograms).float().clamp(-1, 1)
        return list(sounds.transpose(1, 2).cpu().numpy())


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> LTX2Family:
    """This rank's part of the pipeline in `directory`, on its device; safetensors only."""
    # What rewrites prompts and guesses durations is never asked here.
    idle = dict.fromkeys(("processor", "prompt_enhancer", "duration_head"))
    return LTX2Family(load_pipeline(LTX2Pipeline, directory, config, mesh, **idle), mesh, config)
