"""From a body of the OpenAI dialect to a checked `GenerationRequest`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from safelight import fields
from safelight.entrypoint.body import Body
from safelight.entrypoint.inputs import IMAGES, MASK
from safelight.entrypoint.schema import ImageBody, VideoBody
from safelight.errors import InvalidRequest
from safelight.manager.building import build_request
from safelight.manager.media import Media
from safelight.models.card import ModelCard
from safelight.request import GenerationRequest, Output, Sampling

B = TypeVar("B", VideoBody, ImageBody)
T = TypeVar("T")

HINTS = frozenset(
    {
        "background",
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

PICTURES = frozenset({*IMAGES, MASK})
"""Fields that `inputs.media_of` reads."""

_SIZE = re.compile(r"(\d{1,5})[xX](\d{1,5})")
_SAMPLING = frozenset(field.name for field in fields.declared(Sampling))

Choose = Callable[[str | None, Output | None, Media], ModelCard]
"""The card of the model that is meant. Raises `ModelNotFound`."""


@dataclass(frozen=True)
class _Parts(Generic[B]):
    own: B
    sampling: dict[str, Any]
    extra: dict[str, Any]
    """`warnings`, and what the answer echoes."""


def video_request(body: Body, media: Media, choose: Choose) -> GenerationRequest:
    """Raises `RequestError` naming the field."""
    parts = _split(body, VideoBody)
    card = choose(parts.own.model, "video", media)
    sampling, extra = parts.sampling, parts.extra
    if parts.own.seconds is not None:
        extra["seconds"] = str(parts.own.seconds)
        _apply_seconds(parts.own.seconds, sampling, card, strict=body.strict)
    with_size = _apply_size(parts.own.size, sampling, strict=body.strict)
    try:
        return build_request(
            card,
            parts.own.prompt,
            sampling,
            strict=body.strict,
            output="video",
            media=media,
            priority=parts.own.priority,
            round_size=parts.own.round_size,
            extra=extra,
        )
    except InvalidRequest as failure:
        raise _blame_size(failure, with_size) from failure


def image_request(
    body: Body, media: Media, choose: Choose, max_outputs: int
) -> tuple[GenerationRequest, ImageBody]:
    """Raises `RequestError` naming the field."""
    parts = _split(body, ImageBody)
    own = parts.own
    card = choose(own.model, "image", media)
    seeds = own.seed if isinstance(own.seed, list) else ()
    if isinstance(own.seed, int):
        parts.sampling["seed"] = own.seed
    with_size = _apply_size(own.size, parts.sampling, strict=body.strict)
    try:
        request = build_request(
            card,
            own.prompt,
            parts.sampling,
            strict=body.strict,
            output="image",
            media=media,
            seeds=seeds,
            format=own.output_format,
            n=_count(own),
            max_outputs=max_outputs,
            compression=own.output_compression,
            priority=own.priority,
            round_size=own.round_size,
            previews=own.partial_images,
            extra=parts.extra,
        )
    except InvalidRequest as failure:
        raise _blame_size(failure, with_size) from failure
    return request, own


def _split(body: Body, kind: type[B]) -> _Parts[B]:
    """Sort the body's values by who understands them."""
    own_names = {field.name for field in fields.declared(kind)}
    own: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    warnings: list[str] = []
    for name, value in body.values.items():
        if name in PICTURES:
            continue
        if name in own_names:
            own[name] = value
        elif name in _SAMPLING:
            sampling[name] = value
        elif name in MEANINGFUL:
            _refuse(name, value)
        elif name in HINTS:
            warnings.append(f"'{name}' has no effect on this server.")
        else:
            known = sorted(own_names | _SAMPLING)
            warnings.append(fields.unknown(name, known) + " It was ignored.")
    for name in body.files.keys() - PICTURES:
        raise InvalidRequest(
            f"The file '{name}' has no meaning here; pictures come as {', '.join(IMAGES[:3])} or "
            f"{MASK}.",
            param=name,
            code="unsupported_parameter",
        )
    parsed = fields.convert(kind, own, strict=body.strict)
    return _Parts(parsed, sampling, _echoed(body.values) | {"warnings": warnings})


def _refuse(name: str, value: Any) -> None:
    if name == "stream" and str(value).lower() in ("false", "0", ""):
        return
    raise InvalidRequest(
        f"'{name}' is not supported by this server.", param=name, code="unsupported_parameter"
    )


def _echoed(values: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI answers with the effective safety identifier: `user` is its older name."""
    given = values.get("safety_identifier") or values.get("user")
    return {"safety_identifier": given} if isinstance(given, str) else {}


def _count(own: ImageBody) -> int:
    counts = {value for value in (own.n, own.num_outputs_per_prompt) if value is not None}
    if len(counts) > 1:
        raise InvalidRequest(
            f"'n' is {own.n}, but 'num_outputs_per_prompt' is {own.num_outputs_per_prompt}.",
            param="n",
        )
    return counts.pop() if counts else 1


# ------------------------------------------------------------------------------ size and seconds


def _apply_size(size: str | None, sampling: dict[str, Any], *, strict: bool) -> bool:
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
        _agree(name, int(text), sampling, given_as=f"'size' is {size}", strict=strict)
    return True


def _apply_seconds(
    seconds: float | str, sampling: dict[str, Any], card: ModelCard, *, strict: bool
) -> None:
    """Put the frame count nearest to `seconds` into `num_frames`."""
    fps = card.fill({k: v for k, v in sampling.items() if k == "fps"}, strict=strict).fps
    legal = card.num_frames
    wanted = _as_number(seconds) * fps
    if not legal.min <= round(wanted) <= legal.max:
        raise InvalidRequest(
            f"'seconds' is {seconds}; {card.name} makes {legal.min / fps:g} to {legal.max / fps:g} "
            f"seconds at {fps} frames per second.",
            param="seconds",
        )
    near = min(legal.nearest(round(wanted)), key=lambda frames: (abs(frames - wanted), -frames))
    said = f"'seconds' is {seconds} ({near} frames at {fps} per second)"
    _agree("num_frames", near, sampling, given_as=said, strict=strict)


def _as_number(seconds: float | str) -> float:
    try:
        value = float(seconds)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and 0 < value < 1e6):
        raise InvalidRequest(
            f"'seconds' is {seconds!r:.80}; give a number of seconds above 0, for example 4.",
            param="seconds",
        )
    return value


def _agree(name: str, value: int, sampling: dict[str, Any], *, given_as: str, strict: bool) -> None:
    """Set `name`, unless the body gave it another value itself."""
    given = sampling.get(name, value)
    if given != value and (strict or str(given) != str(value)):
        raise InvalidRequest(f"{given_as}, but '{name}' is {given!r:.80}.", param=name)
    sampling[name] = value


def _blame_size(failure: InvalidRequest, with_size: bool) -> InvalidRequest:
    """The field that the client wrote, if it wrote `size`."""
    if with_size and failure.param in ("width", "height"):
        return InvalidRequest(failure.message, param="size", code=failure.code)
    return failure


def echo(request: GenerationRequest, name: str, kind: type[T]) -> T | None:
    """A value of `request.extra`, if it is there."""
    value = request.extra.get(name)
    return None if value is None else msgspec.convert(value, kind)
