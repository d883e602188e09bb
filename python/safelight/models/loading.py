"""Device and precision of a model's parts."""

from __future__ import annotations

import torch

from safelight.config import ModelConfig, Precision
from safelight.errors import ConfigError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_of(config: ModelConfig) -> torch.device:
    """The rank's device. Raises `ConfigError` if CUDA was asked for and is not there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda was asked for, but torch sees no CUDA device "
            f"(torch {torch.__version__}). Use --device cpu, or install a CUDA build of torch.",
            param="device",
        )
    kind = config.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(kind)


def dtypes_of(config: ModelConfig, device: torch.device) -> dict[str, torch.dtype]:
    """Precision by pipeline component, as `from_pretrained(dtype=...)` takes it."""
    transformer = _dtype(
        config.dit_precision, torch.bfloat16 if device.type == "cuda" else torch.float32
    )
    return {
        "transformer": transformer,
        "text_encoder": _dtype(config.text_encoder_precision, transformer),
        "vae": _dtype(config.vae_precision, torch.float32),
        "default": transformer,
    }


def _dtype(precision: Precision, default: torch.dtype) -> torch.dtype:
    return default if precision == "auto" else _DTYPES[precision]
