"""The input pictures of a request: uploads, data URLs, base64."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterator
from typing import Any

from safelight.entrypoint.body import Body
from safelight.errors import InvalidRequest
from safelight.manager.media import Media, decode

IMAGES = ("image", "images", "input_reference", "url", "reference_url", "image_url", "image_urls")
"""Fields that hold input pictures, in the order in which they are taken."""
MASK = "mask"
_INSIDE = ("image_url", "url", "b64_json", "image")
"""Where an object holds its picture."""


async def media_of(body: Body, max_pixels: int) -> Media:
    """The decoded pictures of a body. Raises `InvalidRequest` naming the field."""
    images = [(name, data) for name in IMAGES for data in _of(body, name)]
    masks = list(_of(body, MASK))
    if len(masks) > 1:
        raise InvalidRequest("'mask' is given more than once.", param=MASK)
    mask = masks[0] if masks else None
    if mask is not None and not images:
        raise InvalidRequest("'mask' is given without an image.", param=MASK)
    return await asyncio.to_thread(decode, images, mask, max_pixels=max_pixels)


def _of(body: Body, name: str) -> Iterator[bytes]:
    yield from body.files.get(name, ())
    value = body.values.get(name)
    values = value if isinstance(value, list) else [value]
    for one in values:
        if one not in (None, ""):
            yield _bytes(one, name)


def _bytes(value: Any, name: str) -> bytes:
    """What a JSON value or a form's text stands for."""
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
