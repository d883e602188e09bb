"""From a body of the OpenAI dialect to a checked `GenerationRequest`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from safelight import fields
from safelight.entrypoint.body import Body
from safelight.entrypoint.inputs import IMAGES, MASK, PICTURES
from safelight.entrypoint.lora_fields import adapters_of
from safelight.entrypoint.schema import ImageBody, LoraFields, VideoBody
from safelight.errors import InvalidRequest
from safelight.manager.media import Media
from safelight.models.card import ModelCard
from safelight.request import PRESETS, Adapter, GenerationRequest, Output, Preset, Sampling

B = TypeVar("B", bound=LoraFields)
T = TypeVar("T")

HINTS = frozenset(
    {
        "complexity",
        "input_fidelity",
        "moderation",
        "quality",
        "safety_identifier",
        "style",
        "user",
    }
)
"""OpenAI's own fields without an effect here: accepted, and named in the warnings."""

MEANINGFUL = frozenset(
    {
        "characters",
        "frame_count",
        "svg",
    }
)
"""Ignoring one of these would give the client something else than it asked for."""

MAX_UNKNOWN = 20
"""Unknown fields that are named one by one. Looking for the name that was meant takes time, and
the warnings stay with the job."""
MAX_IDENTIFIER = 512
"""Characters of `safety_identifier`, which stays with the job; OpenAI takes 64."""

_SIZE = re.compile(r"(\d{1,9})[xX](\d{1,9})")
_SAMPLING = frozenset(field.name for field in fields.declared(Sampling))

Choose = Callable[[str | None, Output | None, Media], ModelCard]
"""The card of the model that is meant. Raises `ModelNotFound`."""


@dataclass(frozen=True)
class Parts(Generic[B]):
    own: B
    sampling: dict[str, Any]
    extra: dict[str, Any]
    """`warnings`, and what the answer echoes."""
    adapters: tuple[Adapter, ...]
    """By their names; or what stands for those that are in force."""


def split(
    body: Body,
    kind: type[B],
    refused: Container[str] = MEANINGFUL,
    hints: Container[str] = HINTS,
) -> Parts[B]:
    """Sort the body's values by who understands them."""
    own_names = {field.encode_name for field in msgspec.structs.fields(kind)}
    own: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    warnings, unknown = list(body.warnings), list[str]()
    for name, value in body.values.items():
        if name in PICTURES:
            continue
        if name in own_names:
            own[name] = value
        elif name in _SAMPLING:
            sampling[name] = value
        elif name in refused:
            _refuse(name, value)
        elif name in hints:
            warnings.append(f"'{name}' has no effect on this server.")
        else:
            unknown.append(name)
    warnings += _ignored(unknown, own_names | _SAMPLING)
    for name in body.files.keys() - PICTURES:
        if name in refused:
            _refuse(name, "a file")
        raise InvalidRequest(
            f"The file '{name}' has no meaning here; pictures come as {', '.join(IMAGES[:3])} or "
            f"{MASK}.",
            param=name,
            code="unsupported_parameter",
        )
    parsed = fields.convert(kind, own, strict=body.strict)
    extra = _echoed(body.values) | {"warnings": warnings}
    return Parts(parsed, sampling, extra, adapters_of(parsed, strict=body.strict))


def _ignored(unknown: Sequence[str], known: Collection[str]) -> Iterator[str]:
    """The warnings of unknown fields."""
    for name in unknown[:MAX_UNKNOWN]:
        yield fields.unknown(name, sorted(known)) + " It was ignored."
    if more := len(unknown[MAX_UNKNOWN:]):
        yield f"{more} more fields are not known either, and were ignored."


def _refuse(name: str, value: Any) -> None:
    """Raises `InvalidRequest`, unless the value asks for nothing."""
    if str(value).strip().lower() in ("false", "0", "", "none", "[]", "{}"):
        return
    raise InvalidRequest(
        f"'{name}' is not supported by this server.", param=name, code="unsupported_parameter"
    )


def _echoed(values: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI answers with the effective safety identifier: `user` is its older name.

    Raises `InvalidRequest` for one that is too long to be kept.
    """
    name = "safety_identifier" if values.get("safety_identifier") else "user"
    given = values.get(name)
    if not isinstance(given, str):
        return {}
    if len(given) > MAX_IDENTIFIER:
        raise InvalidRequest(
            f"'{name}' has {len(given)} characters; at most {MAX_IDENTIFIER} fit.", param=name
        )
    return {"safety_identifier": given}


def compression(quality: Preset | None, given: int | None, default: int) -> int | None:
    """`output_compression`, or what the preset of `output_quality` says; `default` is the one that
    is called so."""
    if given is not None or quality is None:
        return given
    return PRESETS.get(quality, default)


def count(own: ImageBody | VideoBody) -> int:
    counts = {value for value in (own.n, own.num_outputs_per_prompt) if value is not None}
    if len(counts) > 1:
        raise InvalidRequest(
            f"'n' is {own.n}, but 'num_outputs_per_prompt' is {own.num_outputs_per_prompt}.",
            param="n",
        )
    return counts.pop() if counts else 1


# ------------------------------------------------------------------------------ size and seconds


def apply_size(size: str | None, sampling: dict[str, Any], *, strict: bool) -> bool:
    """Put `size` into width and height; whether it named any. Raises if they disagree with it."""
    if size is None or size == "auto":
        return False
    found = _SIZE.fullmatch(size)
    if found is None:
        raise InvalidRequest(
            f"'size' is {size!r:.80}; write WIDTHxHEIGHT, for example 832x480, or auto.",
            param="size",
        )
    for name, text in zip(("width", "height"), found.groups(), strict=True):
        agree(name, int(text), sampling, given_as=f"'size' is {size}", strict=strict)
    return True


def agree(name: str, value: int, sampling: dict[str, Any], *, given_as: str, strict: bool) -> None:
    """Set `name`, unless the body gave it another value itself."""
    given = sampling.get(name, value)
    if given != value and (strict or str(given) != str(value)):
        raise InvalidRequest(f"{given_as}, but '{name}' is {given!r:.80}.", param=name)
    sampling[name] = value


def blame_size(failure: InvalidRequest, with_size: bool) -> InvalidRequest:
    """The field that the client wrote, if it wrote `size`."""
    if with_size and failure.param in ("width", "height"):
        return InvalidRequest(failure.message, param="size", code=failure.code)
    return failure


def echo(request: GenerationRequest, name: str, kind: type[T]) -> T | None:
    """A value of `request.extra`, if it is there."""
    value = request.extra.get(name)
    return None if value is None else msgspec.convert(value, kind)
