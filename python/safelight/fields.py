"""Reads declarations: one annotated struct field feeds CLI, files, environment and HTTP.

A field is declared once, as `name: Annotated[type, msgspec.Meta(description=..., ge=...)] = value`
in a frozen `msgspec.Struct`. Everything else here is derived: the list of fields (for the command
line and OpenAPI), conversion of untyped mappings with errors that say what was wrong, and the
nearest valid name for one that is not known.
"""

from __future__ import annotations

import difflib
import functools
import operator
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec

from safelight.errors import ConfigError, InvalidRequest, SafelightError, UnknownField

T = TypeVar("T", bound=msgspec.Struct)

MAX_SEEN = 80
"""Characters of what a person wrote that are said back."""

_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")


@dataclass(frozen=True)
class Field:
    """One declared field. `type` is without `Annotated` wrappers, `meta` is what was on them."""

    name: str
    type: Any
    meta: msgspec.Meta
    default: Any
    required: bool

    @property
    def flag(self) -> str:
        return flag(self.name)

    @property
    def variable(self) -> str:
        return variable(self.name)

    @property
    def help(self) -> str:
        return self.meta.description or ""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names of the same field, as underscored keys; declared in `Meta(extra=...)`."""
        return tuple((self.meta.extra or {}).get("aliases", ()))

    def spelled(self, value: Any) -> Any:
        """`value` as we write it, of a list each; `Meta(extra={"spellings": ...})` has others'."""
        if isinstance(value, list):
            return [self.spelled(one) for one in value]
        spellings = (self.meta.extra or {}).get("spellings", {})
        return spellings.get(value, value) if isinstance(value, str) else value

    @property
    def file_only(self) -> bool:
        """Whether it is a structure, for which only a file has room; `Meta(extra=...)`."""
        return bool((self.meta.extra or {}).get("file_only", False))


def flag(name: str) -> str:
    """The command line's spelling of a name."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The environment's spelling of a name."""
    return "SAFELIGHT_" + name.upper()


@functools.cache  # reading hints takes a millisecond: too long for every line of a batch
def declared(struct: type[msgspec.Struct]) -> tuple[Field, ...]:
    """The fields of `struct`, in order, with their metadata."""
    hints = typing.get_type_hints(struct, include_extras=True)
    return tuple(_field(info, hints[info.name]) for info in msgspec.structs.fields(struct))


def canonical(values: Mapping[str, Any], fields: Iterable[Field]) -> dict[str, Any]:
    """`values` with aliases replaced by the names of the fields they mean, and others' spellings
    of values by ours.

    Raises `ConfigError` if a field is given under two names with two values.
    """
    known = {field.name: field for field in fields}
    names = {alias: field.name for field in known.values() for alias in field.aliases}
    values = {
        key: known[name].spelled(value) if (name := names.get(key, key)) in known else value
        for key, value in values.items()
    }
    result = {key: value for key, value in values.items() if key not in names}
    for alias, value in values.items():
        if alias not in names:
            continue
        name = names[alias]
        if result.setdefault(name, value) != value:
            raise ConfigError(f"'{alias}' and '{name}' are the same setting and disagree.")
    return result


def _field(info: msgspec.structs.FieldInfo, hint: Any) -> Field:
    plain, meta = _taken_apart(hint)
    if typing.get_origin(plain) in (typing.Union, types.UnionType):
        # Bounds of an optional number stand inside.
        parts = [_taken_apart(part) for part in typing.get_args(plain)]
        plain = functools.reduce(operator.or_, (part for part, _ in parts))
        for _, inner in parts:
            meta = _merged(meta, inner)
    return Field(info.name, plain, meta, info.default, info.required)


def _taken_apart(hint: Any) -> tuple[Any, msgspec.Meta]:
    """A type without its `Annotated` wrapper, and the metadata that was on it."""
    if typing.get_origin(hint) is not Annotated:
        return hint, msgspec.Meta()
    plain, *extras = typing.get_args(hint)
    return plain, next((e for e in extras if isinstance(e, msgspec.Meta)), msgspec.Meta())


def _merged(outer: msgspec.Meta, inner: msgspec.Meta) -> msgspec.Meta:
    names = ("gt", "ge", "lt", "le", "description", "extra")
    values = {n: getattr(inner if getattr(outer, n) is None else outer, n) for n in names}
    return msgspec.Meta(**values)


def convert(
    struct: type[T],
    values: Mapping[str, Any],
    *,
    strict: bool = True,
    error: type[SafelightError] = InvalidRequest,
) -> T:
    """`values` as a checked `struct`.

    With `strict=False` strings are read as numbers and booleans (forms, environment). Raises
    `error` naming the field, what was seen and what would be right.
    """
    try:
        return msgspec.convert(dict(values), struct, strict=strict)
    except msgspec.ValidationError as failure:
        raise _explain(failure, values, error) from failure


def _explain(
    failure: msgspec.ValidationError, values: Mapping[str, Any], error: type[SafelightError]
) -> SafelightError:
    text = str(failure)
    found = _PATH.search(text)
    if found is None:
        return error(text)
    name = found["path"].split(".")[0].split("[")[0]
    reason = _PATH.sub("", text)
    seen = f", got {values[name]!r:.80}" if name in values else ""
    return error(f"'{name}': {reason[0].lower()}{reason[1:]}{seen}.", param=name)


def unknown(name: str, known: Iterable[str], *, what: str = "field") -> str:
    """A sentence that says `name` is not known, and the nearest name that is."""
    name = name[:MAX_SEEN]  # whoever made it up chose how long it is
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"Unknown {what} '{name}'.{hint}"


def refuse_unknown(
    values: Iterable[str],
    known: Iterable[str],
    *,
    what: str = "field",
    error: type[SafelightError] = UnknownField,
) -> None:
    """Raise `error` for the first of `values` that is not in `known`."""
    names = set(known)
    for name in values:
        if name not in names:
            raise error(unknown(name, sorted(names), what=what), param=name)
