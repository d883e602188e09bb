"""Which VAEs can be split over ranks, and when that pays. Needs no torch.

What is split are rows: every rank has a band of them and fetches the rows at its edges from its
neighbours before every convolution (`safelight.parallel.vae`). Facts are read from the VAE's
`config.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safelight.errors import ConfigError

Config = Mapping[str, Any]

AUTO_ROWS = 4
"""Latent rows a rank must get. A 3 × 3 convolution computes two rows in vain on a band of `n`
rows with neighbours above and below: half as much again at four rows of latents, more below."""

AUTO_PIXELS = 256 * 256
"""Pixels of a frame, over all samples at once, from which splitting pays. Convolutions and norms
wait for the other ranks 15 to 90 times a latent frame, whatever its size. Measured on the CPU, the
processor time of a rank of two over that of one: 0.64 to 0.81 at 256 × 256, 0.9 to 1.5 at
128 × 128, up to 3.4 at 64 × 64 (Wan, Stable Diffusion, built-in VAE; decode and encode)."""


def read(model: Path) -> Config:
    """The VAE's `config.json` of a pipeline's directory; empty if the pipeline has no VAE."""
    path = model / "vae" / "config.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def why_whole(config: Config) -> str:
    """Why the VAE of this configuration cannot be split; empty if it can."""
    kind = config.get("_class_name")
    if kind is None:
        return "the pipeline has no VAE"
    if kind not in _NARROWING:
        return f"DistVAE has no adapter for {kind}"
    for key, only in _BLOCKS.items():
        if kind in _TWO_D and (others := set(config.get(key, ())) - {only}):
            return f"DistVAE has no adapter for {', '.join(sorted(others))} in {kind}"
    if kind == "AutoencoderKLLTX2Video" and _any(config.get("decoder_inject_noise", False)):
        return f"{kind} draws noise inside its decoder, and ranks would each draw their own"
    return ""


def check(mode: str, config: Config) -> None:
    """Raise `ConfigError` if splitting was asked for (`mode` "on") and is impossible."""
    if mode == "on" and (reason := why_whole(config)):
        raise impossible(reason)


def impossible(reason: str) -> ConfigError:
    """The refusal of `--vae-parallel on`."""
    return ConfigError(
        f"--vae-parallel on: the VAE cannot be split over ranks, as {reason}. "
        "With --vae-parallel auto it is decoded by one rank.",
        param="vae_parallel",
    )


def pays(ranks: int, rows: int, pixels: int) -> bool:
    """Whether `auto` splits: `rows` of latents, `pixels` of a frame times samples."""
    return rows >= AUTO_ROWS * ranks and pixels >= AUTO_PIXELS


def compression(config: Config) -> int:
    """Pixel rows of a latent row. `config` must have all keys, as a loaded VAE's has."""
    return folded(config) * narrowing(config)


def folded(config: Config) -> int:
    """Pixel rows that are folded into channels outside encoder and decoder; 1 if none are."""
    if config["_class_name"] == "AutoencoderKLWan":
        return config["patch_size"] or 1
    return 1


def narrowing(config: Config) -> int:
    """Rows of the encoder's input that become one latent row.

    From the stages, not from a key like `scale_factor_spatial`: such keys are for tiling, and
    diffusers' classes build the same layers whatever they say.
    """
    return _NARROWING[config["_class_name"]](config)


def _any(flags: bool | list[bool]) -> bool:
    return flags if isinstance(flags, bool) else any(flags)


def _stages(key: str) -> Callable[[Config], int]:
    """Every stage but the last halves the rows."""
    return lambda config: 2 ** (len(config[key]) - 1)


def _ratio(config: Config) -> int:
    """As many stages halve the rows as the ratio says, if there are so many."""
    return min(config["spatial_compression_ratio"], 2 ** len(config["block_out_channels"]))


def _ltx2(config: Config) -> int:
    kinds = config["downsample_type"]
    scaling = config["spatio_temporal_scaling"]
    scales = [scaling] * len(kinds) if isinstance(scaling, bool) else scaling
    halvings = sum(bool(on) and kind != "temporal" for on, kind in zip(scales, kinds, strict=False))
    return config["patch_size"] * 2**halvings


_TWO_D = ("AutoencoderKL", "AutoencoderKLFlux2")
_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
_NARROWING: dict[str, Callable[[Config], int]] = {
    "AutoencoderKL": _stages("block_out_channels"),
    "AutoencoderKLFlux2": _stages("block_out_channels"),
    "AutoencoderKLWan": _stages("dim_mult"),
    "AutoencoderKLQwenImage": _stages("dim_mult"),
    "AutoencoderKLHunyuanVideo": _ratio,
    "AutoencoderKLHunyuanVideo15": _ratio,
    "AutoencoderKLLTX2Video": _ltx2,
}
"""Class name -> rows that its encoder makes one of; the classes DistVAE has adapters for."""
