"""Options of other systems that are spelt otherwise here, and what to use instead of the others.

A name that only differs is an alias of its field (`Meta(extra={"aliases": ...})` in `config.py`).
Here is what takes more: `Foreign` declares names that mean several settings, or depend on others,
and `REFUSED` says of the rest what to use instead. All of them are accepted, like our own, on the
command line, as variables and in files, and are not shown by `--help`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from safelight.errors import ConfigError
from safelight.fields import Field, declared, flag, variable
from safelight.models import plugins

Layer = Mapping[str, Any]

_REMOTE = {"openai": "openai", "google_genai": "gemini"}
"""`--backend` -> protocol of a `remote:` path."""

_CUDA = re.compile(r"cuda:(\d+)")
_PREFIXES = re.compile(r"^(DG|SGLANG_DIFFUSION|SGLANG|CACHE_DIT)_")


class Foreign(msgspec.Struct, frozen=True, kw_only=True):
    """Names of other systems, with what they mean here."""

    backend: Annotated[
        str | None,
        Meta(
            description="diffusers is what runs here; openai and google_genai make "
            "`--model-path` a `remote:` one; others are plug-ins."
        ),
    ] = None
    parallel_type: Annotated[
        Literal["tp", "ulysses", "ring"] | None,
        Meta(
            description="`--ulysses-degree` or `--ring-degree` of all ranks; tp is `--tp-size` of "
            "all of them: text encoders are shared by weights, the transformer by sequence."
        ),
    ] = None
    parallel_text_encoder: Annotated[
        bool, Meta(description="`--tp-size` of all ranks: `--num-gpus`, or `--gpu-ids`.")
    ] = False
    parallel_vae: Annotated[
        bool, Meta(description="`--vae-parallel auto`, which is the default; off: `off`.")
    ] = False
    vae_sp: Annotated[
        bool, Meta(description="`--vae-parallel auto`, which is the default; off: `off`.")
    ] = False
    cache: Annotated[bool, Meta(description="`--step-cache first-block`; off: `none`.")] = False
    Fn: Annotated[
        int | None,
        Meta(description="1 is what `--step-cache` does: the first block is always computed."),
    ] = None
    Bn: Annotated[
        int | None,
        Meta(description="0 is what `--step-cache` does: no last blocks are always computed."),
    ] = None


class Refusal(msgspec.Struct, frozen=True):
    """A name without a meaning here."""

    instead: str
    """A sentence: what to use."""
    switch: bool = False
    """Whether it stands without a value."""


REFUSED: Mapping[str, Refusal] = {
    "enable_teacache": Refusal(
        "TeaCache's measurements of every model are not in this version. Use --step-cache "
        "first-block, which needs none",
        switch=True,
    ),
    "device_map": Refusal(
        "a model is not cut up by layers, of which one would work at a time. Use "
        "--ulysses-degree or --ring-degree to share it; for a plug-in that places its own parts, "
        "--gpus-per-rank"
    ),
    "pipeline_quant_config_path": Refusal(
        "it is a Python file, which would be run. Use --quantization int8, fp8 or fp8-storage, or "
        "--transformer-path with a .gguf file"
    ),
    "mask_strategy_file_path": Refusal(
        "sliding-tile masks are not in this version. Leave it out, or choose --attention-backend"
    ),
    "return_frames": Refusal(
        "a command line has nobody to return frames to. Files are saved; leave it out", switch=True
    ),
}
"""Name -> why, and what instead. Off (false, none, null) they are accepted."""

_OFF = (None, False, "", "none", "null")


def fields() -> tuple[Field, ...]:
    """Everything here as options."""
    return (*declared(Foreign), *map(_refused, REFUSED))


def _refused(name: str) -> Field:
    refusal = REFUSED[name]
    meta = Meta(description=f"Refused: {refusal.instead}.")
    return Field(name, bool if refusal.switch else str | None, meta, None, False)


# ------------------------------------------------------------------------------------ translation


def spelt_out(values: Layer, label: str) -> Layer:
    """One source's values with `device: cuda:1` as the device and its number."""
    found = _CUDA.fullmatch(str(values.get("device")))
    if found is None:
        return values
    if values.get("gpu_ids", found[1]) != found[1]:
        raise ConfigError(f"{label} cuda:{found[1]} and {flag('gpu_ids')} disagree.")
    return {**values, "device": "cuda", "gpu_ids": found[1]}


def translated(merged: Layer) -> dict[str, Any]:
    """All settings with the names of this module replaced by ours.

    Raises `ConfigError` saying what to use instead, or which two settings disagree.
    """
    ours = {k: v for k, v in merged.items() if k not in Foreign.__struct_fields__}
    for name, refusal in REFUSED.items():
        if ours.pop(name, None) not in _OFF:
            raise ConfigError(f"{flag(name)}: {refusal.instead}.", param=name)
    for name in Foreign.__struct_fields__:
        if name in merged:
            _add(ours, name, _meaning(name, merged[name], ours))
    return ours


def _meaning(name: str, value: Any, ours: Layer) -> dict[str, Any]:
    """What one of `Foreign` stands for."""
    match name:
        case "parallel_vae" | "vae_sp":
            return {"vae_parallel": "auto" if value else "off"}
        case "cache":
            return {"step_cache": "first-block" if value else "none"}
        case "Fn" | "Bn":
            return _blocks(name, value)
        case "parallel_text_encoder":
            return {"tp_size": _ranks(name, ours)} if value else {}
        case "parallel_type":
            degree = {"tp": "tp_size", "ulysses": "ulysses_degree", "ring": "ring_degree"}[value]
            return {degree: _ranks(name, ours)}
    return _backend(value, ours)


def _blocks(name: str, value: int) -> dict[str, Any]:
    """The one number that a step cache has."""
    only = {"Fn": 1, "Bn": 0}[name]
    if value != only:
        raise ConfigError(
            f"{flag(name)} {value}: --step-cache first-block always computes the first block and "
            f"no last ones, so {flag(name)} is {only}. Leave it out.",
            param=name,
        )
    return {}


def _add(ours: dict[str, Any], name: str, meant: Layer) -> None:
    for key, value in meant.items():
        # A remote path replaces the name it is made of; `auto` is a wish, not an order.
        if key != "model_path" and value != "auto" and ours.get(key, value) != value:
            raise ConfigError(f"{flag(name)} means {flag(key)} {value}; {ours[key]} was given too.")
        ours[key] = ours.get(key, value) if value == "auto" else value


def _ranks(name: str, ours: Layer) -> int:
    """How many ranks a replica has, as far as it was said."""
    ids = ours.get("gpu_ids")
    total = ours.get("num_gpus") or (len(ids.split(",")) if ids else None)
    if total is None:
        raise ConfigError(f"{flag(name)} needs {flag('num_gpus')}: over how many?", param=name)
    return int(total // (ours.get("dp_size") or 1))


def _backend(value: str | None, ours: Layer) -> dict[str, Any]:
    if value in _OFF or value == "diffusers" or value in plugins.names():
        return {}
    if value not in _REMOTE:
        raise ConfigError(
            f"--backend {value}: there are diffusers, {', '.join(_REMOTE)}, and the families of "
            f"installed plug-ins ({', '.join(plugins.names()) or 'none'}). A model with its own "
            "code needs one; see docs/add_a_model.md.",
            param="backend",
        )
    model = ours.get("model_path")
    if model is None:
        raise ConfigError(f"--backend {value} needs --model-path: which model?", param="backend")
    prefix = f"remote:{_REMOTE[value]}/"
    return {"model_path": model if model.startswith("remote:") else prefix + model}


# ------------------------------------------------------------------------------------- environment


def variable_hint(name: str, known: Mapping[str, Field]) -> str | None:
    """Of a variable of another system, a sentence that names ours; None if it is nobody's."""
    if not (found := _PREFIXES.match(name)):
        return None
    rest = name[found.end() :]
    if rest.endswith("GPUS_PER_MODEL"):
        rest = "GPUS_PER_RANK"
    fields = [f for f in known.values() if not f.file_only]
    ours = {variable(n) for f in fields for n in (f.name, *f.aliases)}
    if f"SAFELIGHT_{rest}" in ours:
        return f"{name} is not read here: set SAFELIGHT_{rest}."
    return f"{name} is not read here, unless by a plug-in."
