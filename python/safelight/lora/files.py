"""What is in an adapter's file, found before any of it reaches the model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from safelight.errors import GenerationFailed
from safelight.lora import metadata
from safelight.request import Adapter

CODE = "adapter_unfit"
"""Of the failure of an adapter that cannot be used with the model."""

LOADING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What diffusers, peft and safetensors raise for files they cannot use."""

_LAYER = re.compile(r"^(?P<part>[^.]+)\.(?P<layer>.+?)[._](?:lora|dora)[._]")
_WEIGHTS = re.compile(r"lora|dora_scale|alpha")
_SHAPES = re.compile(
    r"size mismatch for (?P<key>\S+): copying a param with shape torch\.Size\(\[(?P<found>[\d, ]*)"
    r"\]\).*?current model is torch\.Size\(\[(?P<expected>[\d, ]*)\]\)"
)
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def unfit(adapter: Adapter, why: str) -> GenerationFailed:
    """The failure of an adapter that cannot be used; `why` ends the sentence."""
    return GenerationFailed(f"The adapter '{adapter.name}' {why}", code=CODE)


def check(adapter: Adapter) -> None:
    """Refuse a file that is not safetensors, or cut short. Nothing of it is run, or read whole."""
    path = Path(adapter.path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start.startswith(_PICKLES):
            raise unfit(
                adapter,
                "is a pickle (.bin, .pt, .ckpt), which is never opened, as that would run its "
                "code. Convert it to safetensors (safetensors.torch.save_file) and give that.",
            )
        with safe_open(path, framework="pt") as tensors:
            keys, told = list(tensors.keys()), tensors.metadata()
    except SafetensorError as failure:
        raise unfit(
            adapter, f"is no whole safetensors file ({_line(failure)}). Fetch it again."
        ) from failure
    except OSError as failure:
        raise unfit(adapter, f"cannot be read: {failure}.") from failure
    if not any("lora" in key or "dora_scale" in key for key in keys):
        raise unfit(adapter, f"has no LoRA weights{_like(keys)}. Give the file of a LoRA.")
    if why := metadata.complaint(told):
        raise unfit(adapter, f"cannot be used: {why}. Save it again with its weights alone.")


def _like(keys: list[str]) -> str:
    if any(".lokr_" in key for key in keys):
        return ": it is a LoKr"
    return f", but others, as {keys[0]}" if keys else ""


def layers_of(loader: Any, adapter: Adapter, parts: Mapping[str, Any]) -> dict[str, int]:
    """How many layers the file changes, by component of `parts`, as diffusers reads its names.

    Raises `GenerationFailed` for a file that has none of them, or more than LoRA weights.
    """
    options = {"unet_config": parts["unet"].config} if "unet" in parts else {}
    with explained(adapter):
        read = loader.lora_state_dict(
            adapter.path, use_safetensors=True, local_files_only=True, **options
        )
    state: Mapping[str, torch.Tensor] = read[0] if isinstance(read, tuple) else read
    if other := next((key for key in state if not _WEIGHTS.search(key)), None):
        raise unfit(
            adapter,
            f"replaces weights of the model ({other}), which cannot be in force for one request "
            "alone. Give a file that has LoRA weights only.",
        )
    found: dict[str, set[str]] = defaultdict(set)
    for key, tensor in state.items():
        if (match := _LAYER.match(key)) and match["part"] in parts:
            found[match["part"]].add(match["layer"])
            _check_width(adapter, parts[match["part"]], match["layer"], key, tensor)
    if not found:
        others = ", ".join(sorted({key.split(".")[0] for key in state})[:3])
        raise unfit(
            adapter,
            f"changes nothing that this model has ({', '.join(parts)}), but {others}: it was made "
            "for another model.",
        )
    return {part: len(layers) for part, layers in found.items()}


def _check_width(
    adapter: Adapter, part: torch.nn.Module, layer: str, key: str, tensor: torch.Tensor
) -> None:
    """diffusers would widen the model's layer for some; what it makes of narrower ones is right."""
    try:
        base = part.get_submodule(layer)
    except AttributeError:
        return  # by another name, or not there: told after the loading
    if isinstance(base, torch.nn.Linear) and key.endswith(("lora_A.weight", ".down.weight")):
        width = tensor.shape[-1]
        if tensor.ndim == 2 and width > base.in_features:
            raise unfit(
                adapter,
                f"has {key} for {width} inputs, and the model's layer has {base.in_features}: it "
                "was made for another model.",
            )


@contextmanager
def explained(adapter: Adapter) -> Iterator[None]:
    """What libraries raise for a file that does not fit, in one sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except LOADING_ERRORS as failure:
        raise unfit(adapter, _why(adapter, failure)) from failure


def _why(adapter: Adapter, failure: Exception) -> str:
    if found := _SHAPES.search(str(failure)):
        key = found["key"].replace(f".{adapter.digest}", "")
        shape, expected = (found[part].replace(", ", " × ") for part in ("found", "expected"))
        return (
            f"has {key} of shape {shape}, and the model takes {expected}: it was made for another "
            "model."
        )
    return f"does not fit this model ({_line(failure):.300}): it was made for another one."


def _line(failure: Exception) -> str:
    return " ".join(str(failure).split()).rstrip(".") or type(failure).__name__
