"""Command-line options derived from declared fields, and the one place where sources are merged.

A field of `EngineConfig`, `Sampling` or a command's own struct is a flag (`--max-batch-size`), an
environment variable (`SAFELIGHT_MAX_BATCH_SIZE`) and a key of the `--config` file
(`max_batch_size` or `max-batch-size`). Command line wins over environment, environment over file,
file over default; so an option that was not given is None here, and only here.
"""

from __future__ import annotations

import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import typer

from safelight import config
from safelight.cli import foreign
from safelight.errors import ConfigError
from safelight.fields import Field, canonical, declared, flag, unknown, variable
from safelight.request import Sampling

Layer = Mapping[str, Any]
Label = Callable[[Field], str]

_METAVARS: Mapping[Any, str] = {int: "INTEGER", float: "NUMBER", str: "TEXT", bool: ""}
SHORT = {
    "num_inference_steps": ("--steps",),
    "output_path": ("-o",),
    "prompt": ("-p",),
    "gpu_ids": ("-g",),
}
"""Flags beside those that are declared."""
_DEFAULT = "serve_"
_CONFIG = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="JSON or YAML file of any of these options; the command line wins over it.",
        rich_help_panel="Files",
    ),
]


@dataclass(frozen=True)
class Panel:
    """A group of options under one heading of `--help`."""

    title: str
    fields: tuple[Field, ...]
    unset: str | None = None
    """What applies when the option is left out, where that is not the declared default."""
    hidden: bool = False
    """Whether `--help` leaves it out."""


class Resolved(NamedTuple):
    """Typed values of every option that was given anywhere, by whom they are for."""

    engine: dict[str, Any]
    sampling: dict[str, Any]
    rest: dict[str, Any]


def engine_panels() -> list[Panel]:
    """One panel for each section of `EngineConfig`."""
    return [
        Panel(name.capitalize(), declared(section)) for name, section in config.SECTIONS.items()
    ]


def sampling_panel() -> Panel:
    return Panel("Sampling", declared(Sampling), unset="the model's")


def foreign_panel() -> Panel:
    """What users of other systems may type."""
    return Panel("Others", foreign.fields(), hidden=True)


def defaults_panel() -> Panel:
    """`--serve-guidance-scale` and so on: what requests get that leave a parameter out."""
    fields = [field for field in declared(Sampling) if field.name != "seed"]
    renamed = [replace(f, name=_DEFAULT + f.name, default=None, required=True) for f in fields]
    return Panel("Defaults of requests", tuple(renamed), unset="the model's")


def with_defaults(resolved: Resolved) -> dict[str, Any]:
    """The engine's settings, the `serve_*` ones among `default_sampling`; they win over a file."""
    given = {k.removeprefix(_DEFAULT): v for k, v in resolved.rest.items()}
    if not given:
        return resolved.engine
    known = resolved.engine.get("default_sampling", {})
    return {**resolved.engine, "default_sampling": {**known, **given}}


def by_name(panels: Sequence[Panel]) -> dict[str, Field]:
    return {field.name: field for panel in panels for field in panel.fields}


# ----------------------------------------------------------------------------------- command line


def command(
    run: Callable[[Path | None, dict[str, Any]], int],
    panels: Sequence[Panel],
    *,
    arguments: Mapping[str, Any] | None = None,
) -> Callable[..., int]:
    """A function for typer with an option for every field of `panels`, each None when left out.

    `run` gets the path given as `--config` and what was given of the rest. `arguments` are
    annotations of positional arguments; they come first.
    """

    def call(config: str | None = None, **values: Any) -> int:
        given = {name: value for name, value in values.items() if value not in (None, [], ())}
        return run(Path(config) if config else None, given)

    annotations = {**(arguments or {}), "config": _CONFIG}
    for panel in panels:
        shown = (field for field in panel.fields if not field.file_only)
        annotations |= {field.name: _annotation(field, panel) for field in shown}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
        for name, hint in annotations.items()
    ]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = annotations
    call.__doc__ = run.__doc__
    call.__name__ = run.__name__
    return call


def _annotation(field: Field, panel: Panel) -> Any:
    """Numbers stay text here: `resolve_config` reads every source with the same errors."""
    flags = [field.flag, *map(flag, field.aliases), *SHORT.get(field.name, ())]
    hint: Any = str | None
    metavar: str | None = metavar_of(field.type)
    if _plain(field.type) is bool:
        hint, metavar = bool | None, None
        flags = [f"{name}/--no-{name.removeprefix('--')}" for name in flags]
    elif is_list(field.type):
        hint = list[str] | None
    option = typer.Option(
        *flags,
        metavar=metavar,
        help=_help(field, panel),
        rich_help_panel=panel.title,
        show_default=False,
        hidden=panel.hidden,
    )
    return Annotated[hint, option]


def _help(field: Field, panel: Panel) -> str:
    unset = panel.unset if field.required else default_text(field)
    # Square brackets would be read as rich markup.
    return f"{field.help} (default: {unset})" if unset else field.help


def default_text(field: Field) -> str:
    """The default as a user would write it; empty if there is none."""
    if field.required or field.default in (None, msgspec.NODEFAULT, "", [], ()):
        return ""
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    return str(field.default)


def metavar_of(hint: Any) -> str:
    """How a value of this type is written, for people."""
    plain = _plain(hint)
    if typing.get_origin(plain) is Literal:
        return "|".join(str(value) for value in typing.get_args(plain))
    if typing.get_origin(plain) is dict:
        return "MAPPING"
    return "TEXT" if is_list(plain) else _METAVARS[plain]


def is_list(hint: Any) -> bool:
    return typing.get_origin(hint) is list


def _optional(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _plain(hint: Any) -> Any:
    """`X | None` as X."""
    if _optional(hint):
        return next(part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint


# -------------------------------------------------------------------------------------- precedence


def resolve_config(
    command_line: Layer,
    config_file: Path | None,
    fields: Mapping[str, Field],
    *,
    environ: Mapping[str, str] | None = None,
) -> Resolved:
    """Merge the sources: command line, `SAFELIGHT_*` variables, file; defaults are left out.

    `fields` are those that this command knows. Raises `ConfigError` naming the option as its
    source spells it: an unknown one with the nearest known, a wrong value with what would fit.
    """
    layers = [layer(command_line, fields, lambda field: field.flag)]
    variables = config.from_environment(dict(fields), environ)
    layers.append(layer(variables, fields, lambda field: field.variable))
    if config_file is not None:
        layers.append(_file_layer(config_file, fields))
    merged = {name: value for layer in reversed(layers) for name, value in layer.items()}
    return _split(foreign.translated(merged))


def _file_layer(path: Path, fields: Mapping[str, Field]) -> dict[str, Any]:
    given = {name: value for name, value in config.read_file(path).items() if value is not None}
    values = canonical(given, fields.values())
    for name in values:
        if name not in fields:
            raise ConfigError(f"{path}: {unknown(name, sorted(fields), what='setting')}")
    return layer(values, fields, lambda field: f"{path}: {field.name}")


def layer(values: Layer, fields: Mapping[str, Field], label: Label) -> dict[str, Any]:
    """One source, typed; `size` spelt out as width and height, so that sources can overlap."""
    if "device" in values:
        values = foreign.spelt_out(values, label(fields["device"]))
    typed = {name: _typed(value, fields[name], label) for name, value in values.items()}
    size = typed.pop("size", None)
    if size is None:
        return typed
    wide = dict(zip(("width", "height"), _read_size(size, label(fields["size"])), strict=True))
    for name, value in wide.items():
        if typed.get(name, value) != value:
            raise ConfigError(f"{label(fields['size'])} {size} and {label(fields[name])} disagree.")
    return {**typed, **wide}


def _typed(value: Any, field: Field, label: Label) -> Any:
    if is_list(field.type) and isinstance(value, str):
        value = [value]
    if field.type == list[str] and isinstance(value, dict):  # a file may map names to paths
        value = [f"{name}={text}" for name, text in value.items()]
    try:
        return msgspec.convert(field.spelled(value), _annotated(field), strict=False)
    except msgspec.ValidationError as failure:
        reason = str(failure)
        raise ConfigError(
            f"{label(field)}: {reason[0].lower()}{reason[1:]}: {value!r:.80}{_fitting(field)}.",
            param=field.name,
        ) from failure


def _fitting(field: Field) -> str:
    """The values that there are, where they can be listed."""
    if typing.get_origin(_plain(field.type)) is not Literal:
        return ""
    return f"; {metavar_of(field.type).replace('|', ', ')} fit"


def _annotated(field: Field) -> Any:
    """The field's type with its bounds, where they are allowed: not around `| None`."""
    if _optional(field.type):
        return Annotated[_plain(field.type), field.meta] | None
    return Annotated[field.type, field.meta]


def _read_size(size: str, label: str) -> tuple[int, int]:
    width, x, height = size.lower().partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise ConfigError(f"{label}: WIDTHxHEIGHT in pixels is needed, got {size!r:.80}.")
    return int(width), int(height)


def _split(values: Layer) -> Resolved:
    engine, sampling = config.engine_fields(), {f.name for f in declared(Sampling)}
    return Resolved(
        {name: value for name, value in values.items() if name in engine},
        {name: value for name, value in values.items() if name in sampling},
        {name: v for name, v in values.items() if name not in engine and name not in sampling},
    )


def unknown_variables(
    fields: Mapping[str, Field], environ: Mapping[str, str] | None = None
) -> list[str]:
    """A sentence for each `SAFELIGHT_*` variable that no field has, naming the nearest; and for
    each of another system, naming ours."""
    environ = os.environ if environ is None else environ
    flat = [field for field in fields.values() if not field.file_only]
    names = (name for field in flat for name in (field.name, *field.aliases))
    known = set(map(variable, names))
    misspelt = [
        unknown(name, sorted(known), what="environment variable")
        for name in sorted(environ)
        if name.startswith("SAFELIGHT_") and name not in known
    ]
    hints = (foreign.variable_hint(name, fields) for name in sorted(environ))
    return [*misspelt, *(hint for hint in hints if hint is not None)]
