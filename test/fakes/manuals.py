"""What the five manuals name and print, from `test/conformance/manuals/`.

`names/` lists every command, endpoint, field and flag, and how each is tried; `examples/` has what
is printed to be typed, `requests.yaml` the least that each endpoint is sent, and
`substitutions.yaml` all that is replaced in an example before it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

MANUALS = Path(__file__).parents[1] / "conformance" / "manuals"

Kind = Literal["command", "flag", "env", "key", "endpoint", "field", "answer", "value"]
Way = Literal["http", "start", "config", "generate", "elsewhere"]


class Details(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One name of a manual: what it is here, and how it is tried."""

    here: str | None = None
    """In Markdown; without it, the same."""
    test: str | None = None
    """The test that exercises it, if that is not the one that `attempt` feeds."""
    attempt: Any = msgspec.field(name="try", default=msgspec.UNSET)
    """A command line, the value of a variable or a field, or several fields."""
    gives: dict[str, Any] = {}
    """Settings by their path, as `server.port` or `sampling.seed`."""
    refused: str | None = None
    """Words of the sentence that refuses it."""
    cuda: bool = False
    """Whether it is about CUDA devices, so that the device is not the CPU."""
    needs: str | None = None
    """A package; where it is not installed, that is said."""
    absent: bool = False
    """Whether an answer leaves the field out."""
    hint: bool = False
    """Whether a variable has no meaning, which is said."""
    file: bool = False
    path: bool = False
    """Whether a field is a file that is uploaded, or the path of an adapter."""
    warned: bool = False
    """Whether a field is accepted without effect and named in the warnings."""
    status: int = 200


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names of one kind, and of what."""

    kind: Kind
    names: dict[str, Details]
    of: str = ""


class Manual(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    system: str
    groups: list[Group]


class Name(msgspec.Struct, frozen=True):
    """One row of `docs/coverage.md`."""

    system: str
    kind: Kind
    of: str
    name: str
    details: Details

    @property
    def id(self) -> str:
        return "/".join(part for part in (self.system, self.of, self.name) if part)


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The least that an endpoint is sent."""

    server: str = "pictures"
    json: dict[str, Any] | None = None
    form: dict[str, str] | None = None
    files: dict[str, str] = {}
    after: list[str] = []
    """What is sent before it."""


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One block of a manual, as printed."""

    id: str
    section: str
    kind: Way
    language: str
    text: str
    server: str = "pictures"
    after: str | None = None
    """The example that a reader has run before it, in the same shell or program."""
    preamble: str = msgspec.field(name="with", default="")
    """What the manual's reader would add: an import that only its first example prints."""
    says: list[str] = []
    makes: dict[str, list[int] | None] = {}
    """Files, and the sizes of those that are pictures of a known size."""
    starts: list[dict[str, Any]] = []
    """Of each start, the settings that it gives."""


def _read(path: Path, kind: Any) -> Any:
    return msgspec.yaml.decode(path.read_bytes(), type=kind)


@cache
def names() -> tuple[Name, ...]:
    """Every name of the five manuals, in their order."""
    manuals: list[Manual] = [_read(p, Manual) for p in sorted((MANUALS / "names").glob("*.yaml"))]
    return tuple(
        Name(manual.system, group.kind, group.of, name, details)
        for manual in manuals
        for group in manual.groups
        for name, details in group.names.items()
    )


@cache
def examples() -> Mapping[str, Example]:
    """Every example, by `manual/id`."""
    return {
        f"{path.stem}/{example.id}": example
        for path in sorted((MANUALS / "examples").glob("*.yaml"))
        for example in _read(path, list[Example])
    }


@cache
def requests() -> Mapping[str, Request]:
    """The least that each endpoint is sent."""
    found: Mapping[str, Request] = _read(MANUALS / "requests.yaml", dict[str, Request])
    return found


@cache
def substitutions() -> Mapping[str, Mapping[str, str]]:
    found: Mapping[str, Mapping[str, str]] = _read(
        MANUALS / "substitutions.yaml", dict[str, dict[str, str]]
    )
    return found


def filled(text: str, values: Mapping[str, str]) -> str:
    """`{name}` of the values in `text` replaced; other braces are the example's own."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def printed(text: str, tables: tuple[str, ...], values: Mapping[str, str]) -> str:
    """An example with what `tables` of `substitutions.yaml` replace, and nothing else."""
    for table in tables:
        for old, new in substitutions()[table].items():
            text = text.replace(old, filled(new, values))
    return text


def sequence(key: str) -> list[Example]:
    """The example, and before it those that it follows."""
    manual = key.partition("/")[0]
    example = examples()[key]
    before = sequence(f"{manual}/{example.after}") if example.after else []
    return [*before, example]
