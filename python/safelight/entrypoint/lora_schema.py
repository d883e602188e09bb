"""Bodies and answers of the endpoints that manage adapters (LoRA)."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from pydantic import BaseModel

from safelight.manager.wanted import HIGH, LOW

Strength = Annotated[float, Meta(ge=LOW, le=HIGH)]
LoraModel = Annotated[
    str | None, Meta(description="Name of a model of this server; by default the first.")
]


class SetLora(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/set_lora`."""

    lora_nickname: Annotated[
        str | list[str], Meta(description="Name of the adapter; a list for several at once.")
    ] = ""
    lora_path: Annotated[
        str | list[str | None] | None,
        Meta(
            description="A .safetensors file, a directory with one, or a hub id; not needed for "
            "adapters that the server knows."
        ),
    ] = None
    target: Annotated[
        str | list[str], Meta(description="Component it changes, transformer for example, or all.")
    ] = "all"
    strength: Annotated[
        Strength | list[Strength],
        Meta(description="Scale of the effect; one for each adapter, or one for all."),
    ] = 1.0
    model: LoraModel = None


class MergeLora(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/merge_lora_weights`."""

    target: Annotated[str, Meta(description="Component to merge into, or all.")] = "all"
    strength: Annotated[
        Strength | None, Meta(description="Strength to merge at; by default as it was set.")
    ] = None
    model: LoraModel = None


class UnmergeLora(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/unmerge_lora_weights`."""

    model: LoraModel = None


class ApplyLora(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /apply-lora`."""

    lora_name: Annotated[
        str, Meta(description="An adapter that the server knows, or a hub id (org/name).")
    ] = ""
    lora_weight: Annotated[float, Meta(ge=0, le=2, description="Scale of its effect.")] = 1.0
    model: LoraModel = None


class RemoveLora(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /remove-lora`."""

    lora_name: Annotated[
        str | None,
        Meta(description="One to remove from the server too; by default all that were applied."),
    ] = None
    model: LoraModel = None


# ------------------------------------------------------------------------------------- answers


class Known(BaseModel):
    nickname: str
    path: str


class Active(Known):
    merged: bool
    strength: float
    num_lora_layers_with_weights: int
    """Layers of the component that it changes; 0 if no rank has loaded it yet."""


class Loras(BaseModel):
    """SGLang Diffusion's and diffgentor's answer; from `available` on, what only Safelight says."""

    loaded_adapters: list[Known]
    active: dict[str, list[Active]]
    """What later requests get, by component."""
    available: list[Known]
    """Every adapter that requests can name."""
    model: str


class LoraSet(BaseModel):
    status: str = "ok"
    message: str
    model: str
    active: dict[str, list[Active]]


class Applied(BaseModel):
    """FLUX API's answer."""

    status: str = "ok"
    message: str
    model: str
    lora_name: str | None = None
    lora_weight: float | None = None


class LoraStatus(Applied):
    lora_loaded: bool
    """Whether later requests get one."""
    current_lora: str | None
    loras: list[Active]


class Available(BaseModel):
    loras: list[Known]
    total: int
