"""LTX-2's model card, read from the pipeline's JSON files. Needs no torch.

Defaults are those of `LTX2Pipeline.__call__`: 768x512, 121 frames at 24 a second, 30 steps,
guidance 3. What that call has besides stays at its defaults too (`guidance.py`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safelight.errors import ConfigError, InvalidRequest
from safelight.models import plans, specs
from safelight.models.card import NOTHING, ModelCard, Range
from safelight.models.registry import read_json
from safelight.parallel.layout import Capabilities
from safelight.request import Inputs, Sampling, Task

MAX_TOKENS = 300_000  # above 1920x1088 with 1001 frames, beyond what LTX-2 was trained on
SOUND_COMPRESSION = 4
"""Spectra behind one of the sound's latents: fixed in `AutoencoderKLLTX2Audio`."""


class LTX2Card(ModelCard, frozen=True, kw_only=True):
    """A model whose clips have sound, with as many latents as it is long."""

    sound_rate: float
    """Latents of the sound in a second."""
    text_step: int
    """Prompts are filled up with registers, as many as this or a multiple of it."""
    least_steps: int

    def batch_key(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> str:
        # How long the sound is depends on the frame rate; the picture has the size of the video.
        return f"{super().batch_key(sampling, task)}@{sampling.fps}"

    def check(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> None:
        super().check(sampling, task, inputs)
        if sampling.num_inference_steps < self.least_steps:
            raise InvalidRequest(
                f"'num_inference_steps' is {sampling.num_inference_steps}; the sampler of "
                f"{self.name} stretches its noise levels and needs {self.least_steps}.",
                param="num_inference_steps",
            )
        self._check_sound(sampling)
        self._check_text(sampling.max_sequence_length)

    def _shares(self, tokens: int) -> bool:
        """The text's mask forbids parts of different lengths."""
        return tokens >= self.shards and tokens % self.shards == 0

    def _check_sound(self, sampling: Sampling) -> None:
        if round(sampling.num_frames / sampling.fps * self.sound_rate) < 1:
            slowest = math.floor(2 * self.sound_rate * sampling.num_frames)
            raise InvalidRequest(
                f"{sampling.num_frames} frames at {sampling.fps} a second are too short for any "
                f"sound. Give more frames, or 'fps' of at most {slowest - 1}.",
                param="fps",
            )

    def _check_text(self, length: int) -> None:
        step = math.lcm(self.text_step, self.shards)
        legal = Range(step, 4096 // step * step, step)
        if length not in legal:
            near = " or ".join(str(value) for value in legal.nearest(length))
            raise InvalidRequest(
                f"'max_sequence_length' is {length}; {self.name} takes multiples of {step}. "
                f"Nearest: {near}.",
                param="max_sequence_length",
            )


def card(directory: Path, name: str) -> LTX2Card:
    """The card of the pipeline in `directory`."""
    transformer, vae = (specs.config(directory, part) for part in ("transformer", "vae"))
    sound, connectors = (specs.config(directory, part) for part in ("audio_vae", "connectors"))
    sampler = read_json(directory / "scheduler" / "scheduler_config.json")
    _refuse_variants(transformer, directory)
    spatial, temporal = _compression(vae)
    patch, patch_t = transformer.get("patch_size", 1), transformer.get("patch_size_t", 1)
    step = math.lcm(32, spatial * patch)  # `check_inputs` wants multiples of 32
    # The decoder mirrors its edges: one latent along a side has nothing to mirror.
    least = 2 if vae.get("decoder_spatial_padding_mode", "reflect") == "reflect" else 1
    least = math.ceil(least * spatial / step) * step
    sides = Range(least, 4096 // step * step, step)
    registers = [
        connectors.get(f"{part}_connector_num_learnable_registers", 128) or 1
        for part in ("video", "audio")
    ]
    return LTX2Card(
        name=name,
        family="ltx2",
        path=str(directory),
        tasks=("text-to-video", "image-to-video"),
        parameters=(
            *("negative_prompt", "guidance_scale", "max_sequence_length", "fps"),
            *(["flow_shift"] if specs.shiftable(directory) else []),
        ),
        max_images=1,
        defaults={
            "width": 768,
            "height": 512,
            "num_frames": 121,
            "fps": 24,
            "num_inference_steps": 30,
            "guidance_scale": 3.0,
            "max_sequence_length": 1024,
        },
        width=sides,
        height=sides,
        num_frames=Range(1, 1 + 1000 // temporal * temporal, temporal),
        max_tokens=MAX_TOKENS,
        patch=(temporal * patch_t, spatial * patch, spatial * patch),
        sound_rate=sound.get("sample_rate", 16_000)
        / sound.get("mel_hop_length", 160)
        / SOUND_COMPRESSION,
        text_step=math.lcm(*registers),
        least_steps=2 if sampler.get("shift_terminal") else 1,
    )


def capabilities(directory: Path) -> Capabilities:
    """What of the pipeline in `directory` can be shared out over ranks."""
    transformer = specs.config(directory, "transformer")
    width = plans.heads(transformer) * transformer.get("attention_head_dim", 128)
    # No key of the config says how wide the inside is: diffusers' blocks have it so.
    return specs.capabilities(directory, width=width, feed_forward=4 * width)


def _compression(vae: dict[str, Any]) -> tuple[int, int]:
    """Pixels behind a latent along a side, and frames; as `AutoencoderKLLTX2Video` has them."""
    scaling = vae.get("spatio_temporal_scaling", (True,) * 4)
    stages = len(vae.get("layers_per_block", (0,) * 5)) - 1
    halvings = stages * scaling if isinstance(scaling, bool) else sum(scaling)
    spatial = vae.get("spatial_compression_ratio") or vae.get("patch_size", 4) * 2**halvings
    temporal = vae.get("temporal_compression_ratio") or vae.get("patch_size_t", 1) * 2**halvings
    return spatial, temporal


def _refuse_variants(transformer: dict[str, Any], directory: Path) -> None:
    if transformer.get("patch_size_t", 1) != 1:
        raise ConfigError(
            f"The transformer in {directory} has tokens of several latent frames; LTX-2 has one "
            "latent frame a token, and a first picture could not be held."
        )
