"""What a model needs of each device: read from the headers of its weights, without loading them."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path

import msgspec

from safelight.config import EngineConfig, Precision
from safelight.errors import ConfigError
from safelight.models.registry import load_capabilities, load_card, model_directory, read_json
from safelight.parallel.layout import Capabilities, Layout

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_STREAMS = 10
"""Tensors of the hidden width that a transformer block holds at once: its input, the residual, the
normalised, queries, keys, values, their rotated copies, and the attention's output."""


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one rank."""

    weights: dict[str, int]
    """By component. Of a shared text encoder an equal part, to which the rank adds what is not cut:
    norms, a few percent, and a vision tower where there is one."""
    activations: int
    """Estimate for one forward of the largest default request: hidden and feed-forward streams."""

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.activations


class _Tensor(msgspec.Struct):
    shape: tuple[int, ...]


def parameters(directory: Path) -> dict[str, int]:
    """Elements of the weights in safetensors files, by component. Raises `ConfigError`."""
    return {
        folder.name: sum(map(_elements, files))
        for folder in sorted(directory.iterdir())
        if folder.is_dir() and (files := _weight_files(folder))
    }


def _weight_files(folder: Path) -> list[Path]:
    """What is loaded of a component: its one file or those of its index, not those of variants,
    which may lie beside them. Empty if it has no weights."""
    for stem in ("model", "diffusion_pytorch_model"):
        if (single := folder / f"{stem}.safetensors").is_file():
            return [single]
        if (index := folder / f"{stem}.safetensors.index.json").is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict):
                raise ConfigError(f"{index} has no weight_map.", param="model_path")
            return [folder / str(name) for name in sorted(set(shards.values()))]
    return []


def _elements(path: Path) -> int:
    """Elements in one file; its header is JSON behind a length of eight bytes (safetensors)."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            data = file.read(min(length, path.stat().st_size))
        header = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        tensors = [msgspec.json.decode(entry, type=_Tensor) for entry in header.values()]
    except OSError as failure:
        raise ConfigError(f"Cannot read {path}: {failure.strerror}.") from failure
    except (struct.error, ValueError, msgspec.DecodeError) as failure:
        raise ConfigError(f"{path} is not a safetensors file: {failure}.") from failure
    return sum(math.prod(tensor.shape) for tensor in tensors)


def footprint(config: EngineConfig, layout: Layout, *, cuda: bool) -> Footprint:
    """What a rank of `layout` needs. Raises `ConfigError` if there is no such model."""
    model = load_capabilities(config)
    elements = parameters(model_directory(config.model.model_path))
    precisions = _precisions(config, cuda)
    weights = {}
    for component, count in elements.items():
        shared = layout.tp if component in model.encoder_heads else 1
        # text_encoder_2 and its like are loaded as the first one is.
        kind = "text_encoder" if component.startswith("text_encoder") else component
        weights[component] = count * precisions.get(kind, precisions["default"]) // shared
    return Footprint(weights=weights, activations=_activations(config, layout, model, precisions))


def _precisions(config: EngineConfig, cuda: bool) -> dict[str, int]:
    """Bytes of an element by component; `auto` as the loader reads it."""
    transformer = _width(config.model.dit_precision, 2 if cuda else 4)
    encoder = _width(config.model.text_encoder_precision, transformer)
    return {
        "transformer": transformer,
        "text_encoder": encoder,
        "vae": _width(config.model.vae_precision, 4),
        "default": transformer,
    }


def _width(precision: Precision, default: int) -> int:
    return default if precision == "auto" else _BYTES[precision]


def _activations(
    config: EngineConfig, layout: Layout, model: Capabilities, precisions: Mapping[str, int]
) -> int:
    card = load_card(msgspec.structs.replace(config, parallel=type(config.parallel)()))
    tokens = math.ceil(card.tokens(card.fill({})) / layout.sp)
    return tokens * (_STREAMS * model.width + 2 * model.feed_forward) * precisions["transformer"]
