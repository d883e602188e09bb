"""Transformers with weights in eight bits or fewer, by diffusers' quantizers.

Three ways, all of the transformer only: torchao (`int8`, `fp8`: a layer unpacks its weights when it
runs), diffusers' layerwise casting (`fp8-storage`: the same without another library), and GGUF
files, which are quantized already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders import FromOriginalModelMixin

from safelight.errors import ConfigError
from safelight.models import checkpoint


def torchao(quantization: str) -> Any:
    """The `quantization_config` for diffusers' `from_pretrained`; None if torchao has no part."""
    if quantization not in ("int8", "fp8"):
        return None
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    kind = Int8WeightOnlyConfig if quantization == "int8" else Float8WeightOnlyConfig
    return diffusers.TorchAoConfig(kind())


def store(model: Any, quantization: str, dtype: torch.dtype) -> None:
    """Keep the weights of a loaded model in fp8, if so configured; computes in `dtype`."""
    if quantization == "fp8-storage":
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)


def single_file(kind: Any, path: Path, directory: Path, name: str, dtype: torch.dtype) -> Any:
    """A transformer from one file: safetensors, in diffusers' or its authors' names, or GGUF.

    Its configuration is that of the component `name` in `directory`. Raises `ConfigError` if
    diffusers reads no such files for the class `kind`.
    """
    if not issubclass(kind, FromOriginalModelMixin):
        raise ConfigError(
            f"{path} is one file, which diffusers does not read for {kind.__name__}. Give "
            f"--component {name}=DIRECTORY as save_pretrained writes it.",
            param="component",
        )
    options: dict[str, Any] = {}
    if checkpoint.is_gguf(path):
        options["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    return kind.from_single_file(
        str(path),
        config=str(directory),
        subfolder=name,
        dtype=dtype,
        local_files_only=True,
        **options,
    )
