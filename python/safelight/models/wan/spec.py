"""Wan's model card, read from the pipeline's JSON files. Needs no torch.

Defaults are those of `__call__` (Wan 2.1: 832x480, 81 frames, 50 steps, guidance 5) and 16 frames
per second, at which the model was trained; of Wan 2.2 those that its authors give.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safelight.errors import ConfigError
from safelight.models import plans, specs
from safelight.models.card import Range
from safelight.models.registry import pipeline_class, read_json
from safelight.models.wan.card import WanCard
from safelight.parallel.layout import Capabilities
from safelight.request import Task

MAX_TOKENS = 400_000  # above 1280x720 with 201 frames, far beyond what Wan was trained on
FROM_PICTURES = "WanImageToVideoPipeline"
TEXT_TOKENS = 512
"""Of a transformer with an image encoder: it takes the last so many as text."""

DEFAULTS: dict[str, Any] = {
    "width": 832,
    "height": 480,
    "num_frames": 81,
    "fps": 16,
    "num_inference_steps": 50,
    "guidance_scale": 5.0,
    "max_sequence_length": 512,
}
TWO_EXPERTS = {"width": 1280, "height": 720, "num_inference_steps": 40}
TIMED_TOKENS = {"width": 1280, "height": 704, "num_frames": 121, "fps": 24}


def card(directory: Path, name: str) -> WanCard:
    """The card of the pipeline in `directory`. Raises `ConfigError` if no request could run."""
    index = read_json(directory / "model_index.json")
    transformer = _transformer(directory)
    vae = specs.config(directory, "vae")
    pictures = pipeline_class(directory) == FROM_PICTURES
    timed, experts = bool(index.get("expand_timesteps")), _experts(index, directory)
    _check_channels(transformer, vae, directory, masked=pictures and not timed)
    spatial, temporal = vae.get("scale_factor_spatial", 8), vae.get("scale_factor_temporal", 4)
    _, rows, columns = transformer["patch_size"]
    # `check_inputs` wants multiples of 16 whatever the VAE and patch are.
    height_step, width_step = math.lcm(spatial * rows, 16), math.lcm(spatial * columns, 16)
    least, most = _pictures(transformer, directory, timed=timed) if pictures or timed else (1, 0)
    return WanCard(
        name=name,
        family="wan",
        path=str(directory),
        tasks=_tasks(pictures=pictures, timed=timed),
        parameters=(
            *("negative_prompt", "guidance_scale", "max_sequence_length", "fps"),
            *(["guidance_scale_2"] if experts == 2 else []),
            *(["flow_shift"] if specs.shiftable(directory) else []),
        ),
        max_images=most,
        min_images=least,
        text_tokens=TEXT_TOKENS if transformer.get("image_dim") is not None else None,
        defaults=_defaults(experts, pictures=pictures, timed=timed),
        width=Range(width_step, 4096 // width_step * width_step, width_step),
        height=Range(height_step, 4096 // height_step * height_step, height_step),
        num_frames=Range(1, 1 + 1000 // temporal * temporal, temporal),
        max_tokens=MAX_TOKENS,
        patch=(temporal, spatial * rows, spatial * columns),
    )


def capabilities(directory: Path) -> Capabilities:
    """What of the pipeline in `directory` can be shared out over ranks."""
    transformer = _transformer(directory)
    width = plans.heads(transformer) * transformer["attention_head_dim"]
    return specs.capabilities(directory, width=width, feed_forward=transformer["ffn_dim"])


def _transformer(directory: Path) -> dict[str, Any]:
    if not specs.has(directory, "transformer"):
        raise ConfigError(
            f"{directory} has no transformer for high noise; give the whole pipeline's directory."
        )
    return specs.config(directory, "transformer")


def _experts(index: dict[str, Any], directory: Path) -> int:
    """One transformer, or two and the boundary between them."""
    two, ratio = specs.has(directory, "transformer_2"), index.get("boundary_ratio")
    if two and ratio is None:
        raise ConfigError(
            f"{directory} has two transformers, but its model_index.json has no boundary_ratio to "
            "say when the second takes over; Wan 2.2 has 0.875 from text and 0.9 from pictures."
        )
    if ratio is not None and not two:
        raise ConfigError(
            f"The model_index.json in {directory} has a boundary_ratio, but no transformer_2 that "
            "takes over there."
        )
    return 1 + two


def _tasks(*, pictures: bool, timed: bool) -> tuple[Task, ...]:
    text: tuple[Task, ...] = ("text-to-video", "text-to-image")
    if timed:
        return (*text, "image-to-video")
    return ("image-to-video",) if pictures else text


def _defaults(experts: int, *, pictures: bool, timed: bool) -> dict[str, Any]:
    if experts == 2:
        first, second = (3.5, 3.5) if pictures else (4.0, 3.0)
        scales = {"guidance_scale": first, "guidance_scale_2": second}
        return {**DEFAULTS, **TWO_EXPERTS, **scales}
    return {**DEFAULTS, **(TIMED_TOKENS if timed else {})}


def _pictures(transformer: dict[str, Any], directory: Path, *, timed: bool) -> tuple[int, int]:
    """(fewest, most) pictures: the first frame, or the first and the last."""
    if transformer.get("image_dim") is not None:
        if not (specs.has(directory, "image_encoder") and specs.has(directory, "image_processor")):
            raise ConfigError(
                f"The transformer in {directory} wants pictures as an image encoder sees them, but "
                "the pipeline has no image_encoder and image_processor."
            )
        # It adds positions to what the encoder makes of two, or was made for one.
        number = 1 if transformer.get("pos_embed_seq_len") is None else 2
        return number, number
    # With a timestep for each token the pipeline looks at the first alone.
    return 1, 1 if timed else 2


def _check_channels(
    transformer: dict[str, Any], vae: dict[str, Any], directory: Path, *, masked: bool
) -> None:
    latent: int = vae["z_dim"]
    wanted = 2 * latent + vae.get("scale_factor_temporal", 4) if masked else latent
    if (channels := transformer["in_channels"]) != wanted:
        raise ConfigError(
            f"The transformer in {directory} takes {channels} channels, where "
            f"{pipeline_class(directory)} gives it {wanted}: it was made for another pipeline."
        )
