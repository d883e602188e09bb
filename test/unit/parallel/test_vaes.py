"""Facts about VAEs, from their `config.json` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safelight.builtin import builtin_model
from safelight.errors import ConfigError
from safelight.parallel import vaes

LTX2: dict[str, Any] = {"_class_name": "AutoencoderKLLTX2Video"}


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "AutoencoderKL"},
        {"_class_name": "AutoencoderKL", "up_block_types": ["UpDecoderBlock2D"] * 4},
        {"_class_name": "AutoencoderKLFlux2"},
        {"_class_name": "AutoencoderKLWan"},
        {**LTX2, "decoder_inject_noise": [False, False]},
        {**LTX2, "decoder_inject_noise": False},
    ],
)
def test_what_can_be_split(config: vaes.Config) -> None:
    assert vaes.why_whole(config) == ""
    vaes.check("on", config)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({}, "no VAE"),
        ({"_class_name": "AutoencoderKLLTXVideo"}, "AutoencoderKLLTXVideo"),
        (
            {"_class_name": "AutoencoderKL", "down_block_types": ["AttnDownEncoderBlock2D"]},
            "AttnDownEncoderBlock2D",
        ),
        (
            {"_class_name": "AutoencoderKLFlux2", "up_block_types": ["AttnUpDecoderBlock2D"]},
            "AttnUpDecoderBlock2D",
        ),
        ({**LTX2, "decoder_inject_noise": [False, True]}, "noise"),
        ({**LTX2, "decoder_inject_noise": True}, "noise"),
    ],
)
def test_what_cannot(config: vaes.Config, word: str) -> None:
    assert word in vaes.why_whole(config)
    with pytest.raises(ConfigError, match="--vae-parallel auto") as refused:
        vaes.check("on", config)
    assert word in str(refused.value) and refused.value.param == "vae_parallel"
    vaes.check("auto", config)
    vaes.check("off", config)


def test_the_built_in_model() -> None:
    config = vaes.read(builtin_model("shapes"))
    assert vaes.why_whole(config) == ""
    assert (vaes.compression(config), vaes.narrowing(config), vaes.folded(config)) == (8, 2, 4)


def test_a_pipeline_without_vae(tmp_path: Path) -> None:
    assert vaes.read(tmp_path) == {}


def test_reading(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps(LTX2))
    assert vaes.read(tmp_path) == LTX2


@pytest.mark.parametrize(
    ("config", "pixels"),
    [
        # As released: FLUX.1, Wan 2.1 and 2.2 5B, Qwen-Image, HunyuanVideo and 1.5, LTX-2.
        ({"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512]}, 8),
        ({"_class_name": "AutoencoderKLWan", "dim_mult": [1, 2, 4, 4], "patch_size": None}, 8),
        ({"_class_name": "AutoencoderKLWan", "dim_mult": [1, 2, 4, 4], "patch_size": 2}, 16),
        ({"_class_name": "AutoencoderKLQwenImage", "dim_mult": [1, 2, 4, 4]}, 8),
        (
            {
                "_class_name": "AutoencoderKLHunyuanVideo",
                "spatial_compression_ratio": 8,
                "block_out_channels": [128, 256, 512, 512],
            },
            8,
        ),
        (
            {
                "_class_name": "AutoencoderKLHunyuanVideo15",
                "spatial_compression_ratio": 16,
                "block_out_channels": [128, 256, 512, 1024, 1024],
            },
            16,
        ),
        (
            {
                **LTX2,
                "patch_size": 4,
                "spatio_temporal_scaling": [True, True, True, True],
                "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
            },
            32,
        ),
        (
            {
                **LTX2,
                "patch_size": 4,
                "spatio_temporal_scaling": True,
                "downsample_type": ["spatial", "temporal"],
            },
            8,
        ),
    ],
)
def test_pixels_of_a_latent_row(config: vaes.Config, pixels: int) -> None:
    assert vaes.compression(config) == pixels


@pytest.mark.parametrize(
    ("ranks", "rows", "pixels", "split"),
    [
        (2, 8, vaes.AUTO_PIXELS, True),
        (2, 7, vaes.AUTO_PIXELS, False),
        (2, 8, vaes.AUTO_PIXELS - 1, False),
        (8, 32, vaes.AUTO_PIXELS, True),
        (8, 31, 100 * vaes.AUTO_PIXELS, False),
    ],
)
def test_what_pays(ranks: int, rows: int, pixels: int, split: bool) -> None:
    assert vaes.pays(ranks, rows, pixels) is split
