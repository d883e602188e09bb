"""What may be chosen of how a loaded pipeline computes: tiles, attention, compiled blocks."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
import torch
from diffusers.models.attention_dispatch import AttentionBackendName

from safelight import fields
from safelight.config import ModelConfig, VaeConfig
from safelight.errors import ConfigError

_GRID = 16  # pixels; no VAE compresses by more where tiles have a size


def tune(components: Mapping[str, Any], config: ModelConfig, device: torch.device) -> None:
    """Set a loaded pipeline's parts up as configured; by default nothing is changed.

    Raises `ConfigError` naming the flag if a part cannot do it.
    """
    if (vae := components.get("vae")) is not None:
        _divide(vae, config)
    for transformer in _transformers(components):
        if config.attention_backend is not None:
            _attend(transformer, config.attention_backend)
        if config.enable_torch_compile:
            _compile(transformer, device)


def _transformers(components: Mapping[str, Any]) -> Iterator[Any]:
    """What denoises: one or two transformers, or a UNet."""
    for name, module in components.items():
        if name.startswith(("transformer", "unet")) and isinstance(module, torch.nn.Module):
            yield module


# ------------------------------------------------------------------------------------------- VAE


def _divide(vae: Any, config: ModelConfig) -> None:
    """Tiling and slicing, diffusers' own."""
    if config.vae_slicing:
        _able(vae, "slicing")()
    tiles = fields.convert(VaeConfig, config.vae_config, error=ConfigError).tiles
    if config.vae_tiling:
        enable = _able(vae, "tiling")
        enable(**_tiles(tiles, enable, type(vae).__name__))


def _able(vae: Any, what: str) -> Any:
    """The VAE's method that switches `what` on. Raises `ConfigError` if it has none."""
    # diffusers' classes all have the method; those that can also have the attribute.
    if not hasattr(vae, f"use_{what}"):
        raise ConfigError(
            f"--vae-{what}: {type(vae).__name__} has no {what}. Leave it out.", param=f"vae_{what}"
        )
    return getattr(vae, f"enable_{what}")


def _tiles(sizes: Mapping[str, int], enable: Any, kind: str) -> dict[str, int]:
    """Sizes as `enable` takes them, each with a stride that leaves a quarter to overlap: diffusers'
    own stride may be longer than a small tile, and would leave gaps. Some VAEs have no strides, but
    say as a share how far tiles overlap."""
    taken = inspect.signature(enable).parameters
    for name in sizes:
        if name not in taken:
            raise ConfigError(
                f"vae_config: the tiles of {kind} have a size of their own. Leave {name} out.",
                param="vae_config",
            )
    strides = {
        name.replace("_min_", "_stride_"): max(_GRID, size * 3 // 4 // _GRID * _GRID)
        for name, size in sizes.items()
    }
    return {**sizes, **{name: size for name, size in strides.items() if name in taken}}


# ----------------------------------------------------------------------------------- transformer


def _attend(transformer: Any, backend: str) -> None:
    """Have diffusers compute attention by `backend`."""
    known = sorted(kind.value for kind in AttentionBackendName if not _fetched(kind.value))
    if backend not in known:
        reason = "runs code from the hub" if _fetched(backend) else "is not known"
        raise ConfigError(
            f"--attention-backend {backend} {reason}; diffusers {diffusers.__version__} has "
            f"{', '.join(known)}.",
            param="attention_backend",
        )
    try:
        transformer.set_attention_backend(backend)
    except (RuntimeError, ValueError) as failure:  # a package is missing
        raise ConfigError(
            f"--attention-backend {backend}: {' '.join(str(failure).split())} Without the flag "
            "torch's own is used.",
            param="attention_backend",
        ) from failure


def _fetched(backend: str) -> bool:
    """Whether diffusers would download the code that computes it."""
    return backend.endswith("_hub")


def _compile(transformer: Any, device: torch.device) -> None:
    """Compile the repeated blocks, when they first run; recompiled for other shapes."""
    if device.type == "cpu" and not any(map(shutil.which, _compilers())):
        raise ConfigError(
            "--enable-torch-compile needs a C++ compiler on the CPU, and there is no g++ or "
            "clang++. Install one, or leave the flag out.",
            param="enable_torch_compile",
        )
    try:
        transformer.compile_repeated_blocks()
    except ValueError as failure:
        raise ConfigError(
            f"--enable-torch-compile: diffusers does not say which blocks of "
            f"{type(transformer).__name__} are repeated. Leave it out.",
            param="enable_torch_compile",
        ) from failure


def _compilers() -> tuple[str, ...]:
    return (os.environ.get("CXX", "g++"), "g++", "clang++")
