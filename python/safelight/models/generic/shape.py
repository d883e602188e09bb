"""Sizes of a checkpoint, from the configurations of its parts. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.models import specs
from safelight.models.registry import read_json

Config = Mapping[str, Any]

NO_SIZE = 1024
"""Pixels of a side where neither the pipeline nor its configurations say."""

_DENOISERS = ("transformer", "unet", "prior", "decoder", "prior_prior")
_VAES = ("vae", "movq", "vqgan", "vqvae")


@dataclass(frozen=True)
class Shape:
    """How pixels become latents, and latents tokens."""

    spatial: int
    """Pixels of a latent's side."""
    temporal: int
    """Frames behind a latent frame; the first stands alone."""
    patch: int
    """Latents of a token's side."""
    grid: int
    """Sides are multiples of it."""
    size: tuple[int, int] | None
    """(width, height) that the denoiser was made for, in pixels."""
    frames: int | None
    width: int
    """Of the denoiser's hidden states; 0 if its configuration does not say."""


def shape(directory: Path) -> Shape:
    """Of the pipeline in `directory`. What its configurations leave open is as of most models."""
    index = read_json(directory / "model_index.json")
    vae, quantized = _component(directory, index, _VAES), "movq" in index
    denoiser = _component(directory, index, _DENOISERS)
    spatial, temporal = (_spatial(vae), _temporal(vae)) if vae else (1, 1)
    patch = _last(denoiser.get("patch_size")) or 1
    if denoiser.get("in_channels") == 4 * vae.get("latent_channels", 0):
        patch *= 2  # latents are packed into tokens by the pipeline
    # Kandinsky's pipelines round up to this.
    grid = spatial**2 if quantized else spatial * patch
    return Shape(
        spatial=spatial,
        temporal=temporal,
        patch=patch,
        grid=math.lcm(grid, 16),
        size=_size(denoiser, spatial),
        frames=_frames(denoiser, temporal),
        width=_width(denoiser),
    )


def _component(directory: Path, index: Config, names: tuple[str, ...]) -> dict[str, Any]:
    """The configuration of the first component there is; empty if there is none."""
    for name in names:
        if name in index and (directory / name / "config.json").is_file():
            return specs.config(directory, name)
    return {}


def _spatial(vae: Config) -> int:
    return next(_spatial_ratios(vae), 8)


def _spatial_ratios(vae: Config) -> Iterator[int]:
    """As diffusers' autoencoders say it, or as it follows from their stages."""
    for key in ("spatial_compression_ratio", "scale_factor_spatial"):
        if ratio := vae.get(key):
            yield int(ratio)
    if expansions := vae.get("spatial_expansions"):  # Mochi
        yield math.prod(expansions)
    if isinstance(scaling := vae.get("spatio_temporal_scaling"), list):  # LTX
        yield vae.get("patch_size", 1) * 2 ** sum(map(bool, scaling))
    for key in ("encoder_block_out_channels", "block_out_channels", "dim_mult"):
        if stages := vae.get(key):
            yield 2 ** (len(stages) - 1)


def _temporal(vae: Config) -> int:
    for key in ("temporal_compression_ratio", "scale_factor_temporal"):
        if ratio := vae.get(key):
            return int(ratio)
    if expansions := vae.get("temporal_expansions"):  # Mochi
        return math.prod(expansions)
    if isinstance(scaling := vae.get("spatio_temporal_scaling"), list):  # LTX
        return int(vae.get("patch_size_t", 1) * 2 ** sum(map(bool, scaling)))
    return 1


def _last(value: Any) -> int | None:
    """Of a number, or of a list of them with the columns at the end."""
    last = value[-1] if isinstance(value, list) and value else value
    return last if isinstance(last, int) else None


def _size(denoiser: Config, spatial: int) -> tuple[int, int] | None:
    latents = denoiser.get("sample_size")
    height = denoiser.get("sample_height") or (latents[0] if isinstance(latents, list) else latents)
    width = denoiser.get("sample_width") or _last(latents)
    if not isinstance(width, int) or not isinstance(height, int):
        return None
    return width * spatial, height * spatial


def _frames(denoiser: Config, temporal: int) -> int | None:
    frames = denoiser.get("sample_frames") or denoiser.get("num_frames")
    if not isinstance(frames, int):
        return None
    # CogVideoX counts pictures, Allegro latents.
    return frames if (frames - 1) % temporal == 0 else frames * temporal


def _width(denoiser: Config) -> int:
    heads, size = denoiser.get("num_attention_heads"), denoiser.get("attention_head_dim")
    if isinstance(heads, int) and isinstance(size, int):
        return heads * size
    channels = denoiser.get("block_out_channels")
    return channels[-1] if isinstance(channels, list) else 0
