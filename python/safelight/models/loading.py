"""Device and precision of a model's parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import apply_group_offloading

from safelight.config import EngineConfig, ModelConfig, Precision
from safelight.errors import ConfigError
from safelight.parallel.mesh import Mesh
from safelight.parallel.tensor import load_encoders

P = TypeVar("P", bound=DiffusionPipeline)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_pipeline(
    kind: type[P], directory: Path, config: EngineConfig, mesh: Mesh, **components: Any
) -> P:
    """This rank's part of the pipeline in `directory`, on its device; safetensors only.

    Text encoders are shared out over the ranks as the mesh says. `components` replace those of the
    directory.
    """
    dtypes = dtypes_of(config.model, mesh.device)
    shared = load_encoders(directory, mesh, dtypes["text_encoder"], mesh.device)
    pipeline = kind.from_pretrained(
        directory,
        dtype=dtypes,
        use_safetensors=True,
        local_files_only=True,
        **{**shared, **components},
    )
    place(pipeline.components, config.model, mesh.device)
    pipeline.set_progress_bar_config(disable=True)
    loaded: P = pipeline
    return loaded


def device_of(config: ModelConfig, local_rank: int = 0) -> torch.device:
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
    if kind == "cpu":
        return torch.device("cpu")
    if local_rank >= (count := torch.cuda.device_count()):
        raise ConfigError(
            f"Rank {local_rank} has no GPU: torch sees {count}. Lower --num-gpus, or check "
            "--gpu-ids and CUDA_VISIBLE_DEVICES.",
            param="num_gpus",
        )
    # The first stays without its index: tensors of the one are then tensors of the other.
    return torch.device("cuda", local_rank) if local_rank else torch.device("cuda")


def place(components: Mapping[str, Any], config: ModelConfig, device: torch.device) -> None:
    """Move a pipeline's modules to `device`.

    With `text_encoder_cpu_offload` the text encoders stay in host memory, and each of their layers
    is on the device while it runs (diffusers' group offloading). On the CPU there is nothing to do.
    """
    for name, module in components.items():
        if not isinstance(module, torch.nn.Module):
            continue
        if config.text_encoder_cpu_offload and name.startswith("text_encoder"):
            offload(module, device)
        else:
            module.to(device)


def offload(module: torch.nn.Module, device: torch.device) -> None:
    """Keep the weights in host memory, on `device` only what runs."""
    if device.type == "cpu":
        return
    apply_group_offloading(module, onload_device=device, offload_type="leaf_level", use_stream=True)


def weight_bytes(components: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of parameters and buffers on this rank, by component."""
    return {
        name: sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
        for name, module in components.items()
        if isinstance(module, torch.nn.Module)
    }


def dtypes_of(config: ModelConfig, device: torch.device) -> dict[str, torch.dtype]:
    """Precision by pipeline component, as `from_pretrained(dtype=...)` takes it."""
    transformer = _dtype(
        config.dit_precision, torch.bfloat16 if device.type == "cuda" else torch.float32
    )
    encoder = _dtype(config.text_encoder_precision, transformer)
    return {
        "transformer": transformer,
        "transformer_2": transformer,
        **dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3"), encoder),
        "vae": _dtype(config.vae_precision, torch.float32),
        "default": transformer,
    }


def _dtype(precision: Precision, default: torch.dtype) -> torch.dtype:
    return default if precision == "auto" else _DTYPES[precision]
