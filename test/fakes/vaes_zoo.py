"""Tiny random-weight VAEs, one of every class that is split over ranks, and one that is not.

Channels are few but the structure is that of the released ones: four stages and attention in the
middle for images, a temporal cache or causal padding for video.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
)

from safelight.builtin import builtin_model


def _two_d(kind: type) -> Any:
    return kind(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )


def _wan() -> Any:
    return AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1)


def _wan_residual() -> Any:
    """As of Wan 2.2: grouped stages, and pixels folded into channels before the first of them."""
    return AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )


def _qwen_image() -> Any:
    return AutoencoderKLQwenImage(base_dim=4, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1)


def _hunyuan_video() -> Any:
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


def _hunyuan_video_15() -> Any:
    return AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 16, 16, 16), layers_per_block=1
    )


def _ltx2(timestep: bool = False) -> Any:
    return AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 16, 16, 16),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        timestep_conditioning=timestep,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )


def _ltx() -> Any:
    return AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )


def _builtin() -> Any:
    return AutoencoderKLWan.from_pretrained(builtin_model("shapes"), subfolder="vae")


ZOO: dict[str, Callable[[], Any]] = {
    "AutoencoderKL": lambda: _two_d(AutoencoderKL),
    "AutoencoderKLFlux2": lambda: _two_d(AutoencoderKLFlux2),
    "AutoencoderKLWan": _wan,
    "AutoencoderKLWan (2.2)": _wan_residual,
    "AutoencoderKLQwenImage": _qwen_image,
    "AutoencoderKLHunyuanVideo": _hunyuan_video,
    "AutoencoderKLHunyuanVideo15": _hunyuan_video_15,
    "AutoencoderKLLTX2Video": _ltx2,
    "AutoencoderKLLTXVideo": _ltx,
    "builtin:shapes": _builtin,
}
"""Name -> builder. A name is a class, with what is special about the variant in brackets."""

VARIANTS: dict[str, Callable[[], Any]] = {
    "AutoencoderKLLTX2Video (timestep)": lambda: _ltx2(timestep=True),
}
"""For single tests, not for the table."""


def build(name: str) -> Any:
    """The VAE of that name with the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (ZOO | VARIANTS)[name]().eval()


def is_flat(vae: Any) -> bool:
    """Whether it takes pictures, [samples, channels, rows, columns], not videos."""
    return isinstance(vae, AutoencoderKL | AutoencoderKLFlux2)


def frames(vae: Any) -> int:
    """A number of frames that a video VAE takes, and makes more than one latent frame of."""
    return 9 if isinstance(vae, AutoencoderKLLTX2Video) else 5
