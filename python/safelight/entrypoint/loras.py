"""Adapters (LoRA) at run time, as SGLang Diffusion, diffgentor and FLUX API have it.

What these change holds for requests that are accepted later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, TypeVar

import msgspec
from fastapi import APIRouter, Query

from safelight import fields
from safelight.entrypoint import schema
from safelight.entrypoint.body import Body
from safelight.entrypoint.context import Manager, ParsedBody
from safelight.entrypoint.lora_schema import (
    Active,
    Applied,
    ApplyLora,
    Available,
    Known,
    Loras,
    LoraSet,
    LoraStatus,
    MergeLora,
    RemoveLora,
    SetLora,
    UnmergeLora,
)
from safelight.errors import InvalidRequest
from safelight.manager.adapters import Asked
from safelight.manager.manager import RequestManager
from safelight.manager.wanted import MAX_ADAPTERS, named
from safelight.request import Adapter
from safelight.store.adapters import Choice

B = TypeVar("B", bound=msgspec.Struct)
T = TypeVar("T")

Name = Annotated[str | None, Query(alias="model", description="Name of a model of this server.")]

router = APIRouter(tags=["loras"], responses=schema.ERRORS)
"""SGLang Diffusion's and diffgentor's, below `/v1`."""
plain = APIRouter(tags=["loras"], responses=schema.ERRORS)
"""FLUX API's, at the root."""


# ----------------------------------------------------------------- SGLang Diffusion and diffgentor


@router.post("/set_lora", openapi_extra={"requestBody": schema.body_of(SetLora)})
async def set_lora(body: ParsedBody, manager: Manager) -> LoraSet:
    """Load one or several adapters and put them in force, in place of those that were; answers when
    all ranks have them. They are merged into the weights, but for --disable-fuse-lora."""
    own = _read(body, SetLora)
    asked = list(_asked(own))
    model = manager.card(own.model).name
    choice = await manager.adapters.put(model, asked)
    names = ", ".join(one.adapter.name for one in asked)
    return await _set(manager, model, f"Set {names}", choice)


@router.post("/merge_lora_weights", openapi_extra={"requestBody": schema.body_of(MergeLora)})
async def merge(body: ParsedBody, manager: Manager) -> LoraSet:
    """Merge the adapters that were set into the weights, those that were unmerged too."""
    own = _read(body, MergeLora)
    model = manager.card(own.model).name
    choice = await manager.adapters.merge(model, own.target, own.strength)
    return await _set(manager, model, "Merged", choice)


@router.post("/unmerge_lora_weights", openapi_extra={"requestBody": schema.body_of(UnmergeLora)})
async def unmerge(body: ParsedBody, manager: Manager) -> LoraSet:
    """Have the model as it was loaded, bit by bit; what was set can be merged again."""
    model = manager.card(_read(body, UnmergeLora).model).name
    await manager.adapters.unmerge(model)
    return await _set(manager, model, "Unmerged", manager.adapters.choice(model))


@router.get("/list_loras")
async def page(manager: Manager, name: Name = None) -> Loras:
    """The adapters that were loaded, those in force by component, and all that requests can name.
    400 if the model takes none."""
    model = manager.card(name).name
    choice = manager.adapters.choice(model)
    return Loras(
        loaded_adapters=_known(manager.adapters.registered()),
        active=_active(manager, model, choice, await manager.adapters.names()),
        available=_known(await manager.adapters.names()),
        model=model,
    )


# ---------------------------------------------------------------------------------------- FLUX API


@plain.post("/apply-lora", openapi_extra={"requestBody": schema.body_of(ApplyLora)})
async def apply(body: ParsedBody, manager: Manager) -> Applied:
    """Put one adapter in force, in place of those that were."""
    own = _read(body, ApplyLora)
    if not own.lora_name:
        raise _missing("lora_name")
    model = manager.card(own.model).name
    adapter = named(own.lora_name, own.lora_weight, param="lora_name")
    await manager.adapters.put(model, [Asked(adapter=adapter)])
    return Applied(
        message=f"Applied {adapter.name} to {model} with weight {adapter.scale:g}.",
        model=model,
        lora_name=adapter.name,
        lora_weight=adapter.scale,
    )


@plain.post("/remove-lora", openapi_extra={"requestBody": schema.body_of(RemoveLora)})
async def remove(body: ParsedBody, manager: Manager) -> Applied:
    """Take the adapters out of force; one that is named is forgotten too, unless it is a file of
    --lora-dir."""
    own = _read(body, RemoveLora)
    model = manager.card(own.model).name
    names = await manager.adapters.remove(model, own.lora_name)
    message = f"Removed {', '.join(names)} from {model}." if names else f"{model} had none."
    return Applied(message=message, model=model, lora_name=own.lora_name)


@plain.get("/lora-status")
async def status(manager: Manager, name: Name = None) -> LoraStatus:
    """What is in force."""
    model = manager.card(name).name
    choice = manager.adapters.choice(model)
    names = [one.name for one in choice.in_force]
    sources = await manager.adapters.names()
    return LoraStatus(
        message=f"{model} has {', '.join(names) or 'no adapter'}.",
        model=model,
        lora_name=names[0] if names else None,
        lora_weight=choice.in_force[0].scale if names else None,
        lora_loaded=bool(names),
        current_lora=names[0] if names else None,
        loras=[
            _entry(one, choice, sources, _total(manager, model, one)) for one in choice.in_force
        ],
    )


@plain.get("/loras")
async def available(manager: Manager) -> Available:
    """Every adapter that requests can name."""
    found = _known(await manager.adapters.names())
    return Available(loras=found, total=len(found))


# ----------------------------------------------------------------------------------------- bodies


def _read(body: Body, kind: type[B]) -> B:
    """Raises `InvalidRequest`; a misspelt field would silently change what is set."""
    known = [field.name for field in fields.declared(kind)]
    fields.refuse_unknown(body.values, known)
    return fields.convert(kind, body.values, strict=body.strict)


def _asked(own: SetLora) -> Iterator[Asked]:
    """One for each name. Raises `InvalidRequest` for lists of different lengths."""
    names = own.lora_nickname if isinstance(own.lora_nickname, list) else [own.lora_nickname]
    if not any(names):
        raise _missing("lora_nickname")
    if len(names) > MAX_ADAPTERS:
        raise InvalidRequest(
            f"'lora_nickname' lists {len(names)} adapters; at most {MAX_ADAPTERS} fit.",
            param="lora_nickname",
        )
    paths = _spread("lora_path", own.lora_path, len(names))
    targets = _spread("target", own.target, len(names))
    strengths = _spread("strength", own.strength, len(names))
    for name, path, target, strength in zip(names, paths, targets, strengths, strict=True):
        adapter = named(name, strength, target, param="lora_nickname")
        yield Asked(adapter=adapter, path=path or None)


def _spread(name: str, value: T | list[T], count: int) -> Sequence[T]:
    """One value for each adapter. Raises `InvalidRequest` if it lists fewer or more."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise InvalidRequest(
            f"'{name}' lists {len(value)} values for {count} adapters in 'lora_nickname'; list one "
            "for each, or give one for all.",
            param=name,
        )
    return value


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(f"'{name}' is missing: name the adapter.", param=name)


# ---------------------------------------------------------------------------------------- answers


async def _set(manager: RequestManager, model: str, what: str, choice: Choice) -> LoraSet:
    active = _active(manager, model, choice, await manager.adapters.names())
    return LoraSet(message=f"{what} on {model}.", model=model, active=active)


def _known(sources: Mapping[str, str]) -> list[Known]:
    return [Known(nickname=name, path=path) for name, path in sorted(sources.items())]


def _active(
    manager: RequestManager, model: str, choice: Choice, sources: Mapping[str, str]
) -> dict[str, list[Active]]:
    """By component; under `all` what no rank has loaded yet."""
    found: dict[str, list[Active]] = {}
    for adapter in choice.in_force:
        for component, layers in manager.adapters.trying.layers(model, adapter).items():
            found.setdefault(component, []).append(_entry(adapter, choice, sources, layers))
    return found


def _entry(adapter: Adapter, choice: Choice, sources: Mapping[str, str], layers: int) -> Active:
    return Active(
        nickname=adapter.name,
        path=sources.get(adapter.name, ""),
        merged=choice.merged,
        strength=adapter.scale,
        num_lora_layers_with_weights=layers,
    )


def _total(manager: RequestManager, model: str, adapter: Adapter) -> int:
    return sum(manager.adapters.trying.layers(model, adapter).values())
