"""What a model needs of each device: read from the headers of its weights, without loading them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec

from safelight.config import EngineConfig, ModelConfig
from safelight.models import checkpoint, sources
from safelight.models.registry import load_capabilities, load_card, model_directory
from safelight.parallel.layout import Capabilities, Layout

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_QUANTIZED = 1.0
"""Bytes of an element in eight bits; scales are a few percent more."""
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


def parameters(directory: Path, files: Mapping[str, Path] | None = None) -> dict[str, int]:
    """Elements of the weights in safetensors files, by component. Raises `ConfigError`.

    `files`: components whose weights are in one file elsewhere.
    """
    counts = {
        folder.name: sum(map(_elements, found))
        for folder in sorted(directory.iterdir())
        if folder.is_dir()
        and folder.name not in (files or {})
        and (found := checkpoint.weight_files(folder))
    }
    return counts | {name: _elements(path) for name, path in (files or {}).items()}


def _elements(path: Path) -> int:
    if checkpoint.is_gguf(path):
        return sum(elements for _, elements, _ in checkpoint.gguf_tensors(path))
    return sum(tensor.elements for tensor in checkpoint.safetensors_header(path).values())


def footprint(config: EngineConfig, layout: Layout, *, cuda: bool) -> Footprint:
    """What a rank of `layout` needs. Raises `ConfigError` if there is no such model."""
    model = load_capabilities(config)
    files = sources.files(config.model)
    elements = parameters(model_directory(config.model.model_path), files)
    widths = _widths(config.model, cuda)
    weights = {}
    for component, count in elements.items():
        shared = layout.tp if component in model.encoder_heads else 1
        weights[component] = int(count * widths.get(component, widths["default"])) // shared
        if (path := files.get(component)) is not None and checkpoint.is_gguf(path):
            weights[component] = sum(size for _, _, size in checkpoint.gguf_tensors(path))
    return Footprint(weights=weights, activations=_activations(config, layout, model, widths))


def _widths(model: ModelConfig, cuda: bool) -> dict[str, float]:
    """Bytes of an element by component; `auto` as the loader reads it."""
    precisions = sources.precisions(model, cuda=cuda)
    widths: dict[str, float] = {name: _BYTES[precision] for name, precision in precisions.items()}
    if model.quantization != "none":
        widths |= {name: _QUANTIZED for name in widths if name.startswith("transformer")}
    return {**widths, "activations": _BYTES[precisions["transformer"]]}


def _activations(
    config: EngineConfig, layout: Layout, model: Capabilities, widths: Mapping[str, float]
) -> int:
    card = load_card(msgspec.structs.replace(config, parallel=type(config.parallel)()))
    tokens = math.ceil(card.tokens(card.fill({})) / layout.sp)
    return tokens * (_STREAMS * model.width + 2 * model.feed_forward) * int(widths["activations"])
