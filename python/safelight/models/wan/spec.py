"""Wan's model card, read from the pipeline's JSON files. Needs no torch.

Defaults are those of `WanPipeline.__call__` (Wan 2.1: 832x480, 81 frames, 50 steps, guidance 5)
and 16 frames per second, at which the model was trained.
"""

from __future__ import annotations

from pathlib import Path

from safelight.errors import ConfigError
from safelight.models import plans, specs
from safelight.models.card import ModelCard, Range
from safelight.models.registry import read_json
from safelight.parallel.layout import Capabilities

MAX_TOKENS = 400_000  # above 1280x720 with 201 frames, far beyond what Wan was trained on


def card(directory: Path, name: str) -> ModelCard:
    """The card of the pipeline in `directory`. Raises `ConfigError` if it is another Wan."""
    _refuse_variants(read_json(directory / "model_index.json"), directory)
    transformer = specs.config(directory, "transformer")
    vae = specs.config(directory, "vae")
    spatial, temporal = vae.get("scale_factor_spatial", 8), vae.get("scale_factor_temporal", 4)
    _, rows, columns = transformer["patch_size"]
    # `WanPipeline.check_inputs` wants multiples of 16 whatever the VAE and patch are.
    height_step, width_step = _lcm16(spatial * rows), _lcm16(spatial * columns)
    return ModelCard(
        name=name,
        family="wan",
        path=str(directory),
        tasks=("text-to-video", "text-to-image"),
        parameters=(
            *("negative_prompt", "guidance_scale", "max_sequence_length", "fps"),
            *(["flow_shift"] if specs.shiftable(directory) else []),
        ),
        defaults={
            "width": 832,
            "height": 480,
            "num_frames": 81,
            "fps": 16,
            "num_inference_steps": 50,
            "guidance_scale": 5.0,
            "max_sequence_length": 512,
        },
        width=Range(width_step, 4096 // width_step * width_step, width_step),
        height=Range(height_step, 4096 // height_step * height_step, height_step),
        num_frames=Range(1, 1 + 1000 // temporal * temporal, temporal),
        max_tokens=MAX_TOKENS,
        patch=(temporal, spatial * rows, spatial * columns),
    )


def capabilities(directory: Path) -> Capabilities:
    """What of the pipeline in `directory` can be shared out over ranks."""
    transformer = specs.config(directory, "transformer")
    width = plans.heads(transformer) * transformer["attention_head_dim"]
    return specs.capabilities(directory, width=width, feed_forward=transformer["ffn_dim"])


def _lcm16(value: int) -> int:
    import math

    return math.lcm(value, 16)


def _refuse_variants(index: dict[str, object], directory: Path) -> None:
    second = index.get("transformer_2")
    if isinstance(second, list) and second[0] is not None:
        raise ConfigError(f"{directory} has two transformers (Wan 2.2 A14B); Wan 2.1 layouts run.")
    if index.get("expand_timesteps"):
        raise ConfigError(f"{directory} has per-token timesteps (Wan 2.2 5B); Wan 2.1 layouts run.")
