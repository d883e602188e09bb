"""The input pictures of a request: uploads, data URLs, base64."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterator
from typing import Any

from safelight.entrypoint.body import MAX_FILES, Body
from safelight.errors import InvalidRequest
from safelight.manager.media import Media, decode

IMAGES = ("image", "images", "input_reference", "url", "reference_url", "image_url", "image_urls")
"""Fields that hold input pictures, in the order in which they are taken."""
MASK = "mask"
_INSIDE = ("image_url", "url", "b64_json", "image")
"""Where an object holds its picture."""


async def media_of(body: Body, max_pixels: int) -> Media:
    """The decoded pictures of a body, which are taken out of it: it lives as long as its request,
    and that may wait for long. Raises `InvalidRequest` naming the field."""
    given = {name: list(_taken(body, name)) for name in (*IMAGES, MASK)}
    if (count := sum(map(len, given.values()))) > MAX_FILES:
        name = next(name for name, values in given.items() if values)
        raise InvalidRequest(f"{count} input pictures; at most {MAX_FILES} fit.", param=name)
    return await asyncio.to_thread(_decoded, given, max_pixels)


def _decoded(given: dict[str, list[Any]], max_pixels: int) -> Media:
    """In a thread: pictures are large."""
    images = [(name, _bytes(one, name)) for name in IMAGES for one in given[name]]
    masks = [_bytes(one, MASK) for one in given[MASK]]
    if len(masks) > 1:
        raise InvalidRequest("'mask' is given more than once.", param=MASK)
    mask = masks[0] if masks else None
    if mask is not None and not images:
        raise InvalidRequest("'mask' is given without an image.", param=MASK)
    return decode(images, mask, max_pixels=max_pixels)


def _taken(body: Body, name: str) -> Iterator[Any]:
    """What the field holds: uploads, and values that stand for pictures."""
    yield from body.files.pop(name, ())
    value = body.values.pop(name, None)
    values = value if isinstance(value, list) else [value]
    yield from (one for one in values if one not in (None, ""))


def _bytes(value: Any, name: str) -> bytes:
    """An upload, or what a JSON value or a form's text stands for."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        inner = next((value[key] for key in _INSIDE if value.get(key)), None)
        if inner is None:
            raise InvalidRequest(f"'{name}' needs one of {', '.join(_INSIDE)}.", param=name)
        return _bytes(inner, name)
    if not isinstance(value, str):
        raise InvalidRequest(f"'{name}' is not a picture, but {value!r:.40}.", param=name)
    if value.startswith(("http://", "https://")):
        raise InvalidRequest(
            f"'{name}' is a URL, which this server does not fetch; send the picture itself, as an "
            "upload or as a data URL.",
            param=name,
            code="unsupported_parameter",
        )
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as failure:
        raise InvalidRequest(
            f"'{name}' is neither an upload nor a data URL nor base64.", param=name
        ) from failure
