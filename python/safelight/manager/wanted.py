"""The adapters that a request asks for, in every spelling that clients use.

Each becomes an `Adapter` that has a name but no file: a request never names a path.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from safelight import fields
from safelight.errors import InvalidRequest
from safelight.request import Adapter

IN_FORCE = (Adapter(name=""),)
"""Stands for what is in force when the request is accepted."""
MAX_TEXT = 16_384
"""Characters of a `lora` field that is JSON text: a few of them are a hundred bytes in memory."""
MAX_ADAPTERS = 16
"""Of one request, or of one choice."""

LOW, HIGH = -10.0, 10.0
Weight = Annotated[float, Meta(ge=LOW, le=HIGH)] | None


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One adapter of a `lora` field. The names of one row mean the same."""

    name: str | None = None
    lora_nickname: str | None = None
    lora_name: str | None = None

    scale: Weight = None
    strength: Weight = None
    weight: Weight = None
    lora_weight: Weight = None
    lora_scale: Weight = None

    target: str = "all"
    path: str | None = None
    """The name over again: other servers want one."""
    lora_path: str | None = None
    int_id: int | None = None
    """Other servers' number of an adapter; means nothing here."""


def wanted(value: object, *, strict: bool = True) -> tuple[Adapter, ...]:
    """The adapters of a `lora` field: a name (`NAME` or `NAME:SCALE`), an object with a name and a
    scale, a list of such, or one of these as JSON text.

    Raises `InvalidRequest`.
    """
    found = tuple(_adapter(one, strict) for one in _listed(_read(value)))
    if len(found) > MAX_ADAPTERS:
        raise _wrong(f"lists {len(found)} adapters; at most {MAX_ADAPTERS} fit")
    check_distinct(found, param="lora")
    return found


def _read(value: object) -> object:
    """Forms write structure as JSON text."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    if len(value) > MAX_TEXT:
        raise _wrong(f"is JSON text of {len(value)} characters; at most {MAX_TEXT} are read")
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as failure:
        raise _wrong(f"is not JSON: {failure}") from failure


def _listed(value: object) -> Sequence[object]:
    if value in (None, ""):
        return ()
    return value if isinstance(value, (list, tuple)) else (value,)


def _adapter(value: object, strict: bool) -> Adapter:
    if isinstance(value, Adapter):
        return value
    if isinstance(value, str):
        return _spelt(value)
    if not isinstance(value, dict):
        raise _wrong(f"has {value!r:.80}; an adapter is a name, or an object with name and scale")
    return _from_entry(_converted({k: v for k, v in value.items() if v is not None}, strict))


def _converted(value: dict[str, Any], strict: bool) -> _Entry:
    known = [field.name for field in fields.declared(_Entry)]
    fields.refuse_unknown(map(str, value), known, what="field of 'lora'", error=_OfLora)
    return fields.convert(_Entry, value, strict=strict, error=_OfLora)


class _OfLora(InvalidRequest):
    """Whatever is wrong inside, the field that the client wrote is `lora`."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(f"'lora': {message}", param="lora", code=code)


def _spelt(text: str) -> Adapter:
    """`NAME` or `NAME:SCALE`."""
    name, colon, scale = text.rpartition(":")
    try:
        value = float(scale) if colon else 1.0
    except ValueError:
        name, value = text, 1.0
    return named(name if colon and name else text, value, param="lora")


def _from_entry(entry: _Entry) -> Adapter:
    names = _given(entry, "name", "lora_nickname", "lora_name")
    paths = _given(entry, "path", "lora_path")
    scales = _given(entry, "scale", "strength", "weight", "lora_weight", "lora_scale")
    for several in (names, paths, scales):
        if len(set(several)) > 1:
            raise _wrong(f"gives one thing twice, as {' and '.join(map(repr, several))}")
    if not names and not paths:
        raise _wrong("has an adapter without a name")
    scale = float(scales[0]) if scales else 1.0
    adapter = named((names or paths)[0], scale, entry.target, param="lora")
    # Kept for the catalog, which knows whether it is a name or another way to say this one.
    return msgspec.structs.replace(adapter, path=paths[0]) if paths and names else adapter


def _given(entry: _Entry, *names: str) -> list[Any]:
    values = msgspec.structs.asdict(entry)
    return [values[name] for name in names if values[name] is not None]


def named(name: str, scale: float = 1.0, target: str = "all", *, param: str) -> Adapter:
    """An adapter by its name. Raises `InvalidRequest` for a name or a scale that cannot be."""
    if not name.strip() or len(name) > 256 or not name.isprintable():
        raise InvalidRequest(
            f"'{param}' names an adapter {name!r:.80}; names have 1 to 256 printable characters.",
            param=param,
        )
    if not (math.isfinite(scale) and LOW <= scale <= HIGH):
        raise InvalidRequest(
            f"'{param}' gives {name} the scale {scale:g}; it must be {LOW:g} to {HIGH:g}.",
            param=param,
        )
    return Adapter(name=name, scale=scale, target=target)


def check_distinct(adapters: Iterable[Adapter], *, param: str) -> None:
    """Raise `InvalidRequest` if one adapter is applied twice to one component."""
    seen: dict[str, set[str]] = {}
    for one in adapters:
        others = seen.setdefault(one.digest or one.name, set())
        if others and (one.target in others or "all" in {one.target, *others}):
            raise InvalidRequest(
                f"'{param}' lists '{one.name}' twice for one component; give it once, with the sum "
                "of the scales.",
                param=param,
            )
        others.add(one.target)


def _wrong(what: str) -> InvalidRequest:
    return InvalidRequest(f"'lora' {what}.", param="lora")
