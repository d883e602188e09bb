"""The input pictures of a request: uploads, data URLs, base64, and URLs where they are fetched."""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from safelight import egress
from safelight.config import ServerConfig
from safelight.entrypoint.body import MAX_FILES, Body
from safelight.entrypoint.guard import Intake
from safelight.errors import InvalidRequest, Overloaded
from safelight.manager.media import Media, decode

IMAGES = (
    *("image", "images", "input_reference", "input_references", "image_reference"),
    *("url", "reference_url", "image_url", "image_urls"),
)
"""Fields that hold input pictures, in the order in which they are taken."""
LINKS = frozenset({"url", "reference_url", "image_url", "image_urls"})
"""Those of them that are for URLs."""
MASK = "mask"
MASK_IMAGE = "mask_image"
"""As vLLM-Omni calls it."""
PICTURES = frozenset({*IMAGES, MASK, MASK_IMAGE})
_INSIDE = ("image_url", "url", "b64_json", "image")
"""Where an object holds its picture."""
_DECODERS = 2
"""So many requests' pictures are decoded at once: a small file may take much memory meanwhile."""

Source = bytes | str
"""An upload, or text that stands for a picture: a URL, a data URL, or base64."""


async def media_of(body: Body, server: ServerConfig) -> Media:
    """The decoded pictures of a body, which are taken out of it: it lives as long as its request,
    and that may wait for long. Raises `InvalidRequest` naming the field, or `Overloaded`."""
    with ExitStack() as held:
        try:
            return await (await _begun(_sources(body), server, held))
        except (InvalidRequest, Overloaded) as failure:
            # It outlives this for a while, with all the pictures that its frames hold.
            traceback.clear_frames(failure.__traceback__)
            if failure.__cause__ is not None:
                traceback.clear_frames(failure.__cause__.__traceback__)
            raise


def _sources(body: Body) -> list[tuple[str, Source]]:
    """All that a body has, taken out of it."""
    sources = [(name, one) for name in (*IMAGES, MASK, MASK_IMAGE) for one in _taken(body, name)]
    if len(sources) > MAX_FILES:
        text = f"{len(sources)} input pictures; at most {MAX_FILES} fit."
        raise InvalidRequest(text, param=sources[0][0])
    return _without_strays(sources, body)


async def _begun(
    sources: list[tuple[str, Source]], server: ServerConfig, held: ExitStack
) -> asyncio.Future[Media]:
    """They are fetched, and being decoded, or wait for their turn. Until `held` is closed they
    count: their bodies are read, and no longer among those that `Intake` bounds elsewhere."""
    queue, sent = _queue(max(server.max_body_bytes, server.fetch_max_bytes)), _size(sources)
    held.enter_context(queue.holding(sent))
    fetched = await _fetched(sources, server)
    held.enter_context(queue.holding(max(0, _size(fetched) - sent)))
    return asyncio.get_running_loop().run_in_executor(
        _decoders(), _decoded, fetched, server.max_input_pixels
    )


def _size(sources: list[tuple[str, Source]]) -> int:
    return sum(len(one) for _, one in sources)


def _without_strays(sources: list[tuple[str, Source]], body: Body) -> list[tuple[str, Source]]:
    """A manual of SGLang Diffusion sends `url=image_url.jpg` beside an upload: what is no URL is
    ignored, and named, where there is a picture without it."""
    if not any(isinstance(one, bytes) and name in IMAGES for name, one in sources):
        return sources
    kept = [(name, one) for name, one in sources if not (name in LINKS and _stray(one))]
    for name in {name for name, _ in sources} - {name for name, _ in kept}:
        body.warnings.append(f"'{name}' is no URL and was ignored: an upload is there.")
    return kept


def _stray(one: Source) -> bool:
    return isinstance(one, str) and not (_is_url(one) or one.startswith("data:"))


def _is_url(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://"))


async def _fetched(
    sources: list[tuple[str, Source]], server: ServerConfig
) -> list[tuple[str, Source]]:
    """With pictures in place of URLs."""
    loop = asyncio.get_running_loop()
    end, left = loop.time() + server.fetch_timeout, server.fetch_max_bytes
    found = []
    for name, one in sources:
        if isinstance(one, str) and _is_url(one):
            one = await _picture_at(one, name, server, left, end - loop.time())
            left -= len(one)
        found.append((name, one))
    return found


async def _picture_at(
    url: str, name: str, server: ServerConfig, max_bytes: int, patience: float
) -> bytes:
    if not server.fetch_urls:
        raise InvalidRequest(
            f"'{name}' is a URL, which this server does not fetch (--fetch-urls switches it on); "
            "send the picture itself, as an upload or as a data URL.",
            param=name,
            code="unsupported_parameter",
        )
    return await egress.fetch(
        url,
        max_bytes=max_bytes,
        patience=max(0.0, patience),
        allow_private=server.fetch_private,
        hosts=server.fetch_hosts,
        name=name,
    )


def _decoded(sources: list[tuple[str, Source]], max_pixels: int) -> Media:
    """In a thread: pictures are large."""
    images = [(name, _bytes(one, name)) for name, one in sources if name in IMAGES]
    masks = [(name, _bytes(one, name)) for name, one in sources if name not in IMAGES]
    if len(masks) > 1:
        raise InvalidRequest("'mask' is given more than once.", param=MASK)
    if masks and not images:
        raise InvalidRequest(f"'{masks[0][0]}' is given without an image.", param=masks[0][0])
    return decode(images, masks[0][1] if masks else None, max_pixels=max_pixels)


def _taken(body: Body, name: str) -> Iterator[Source]:
    """What the field holds: uploads, and values that stand for pictures."""
    yield from body.files.pop(name, ())
    value = body.values.pop(name, None)
    values = value if isinstance(value, list) else [value]
    yield from (_source(one, name) for one in values if one not in (None, ""))


def _source(value: Any, name: str) -> str:
    """The text of a JSON value or a form's."""
    if isinstance(value, Mapping):
        return _source(_inside(value, name), name)
    if not isinstance(value, str):
        raise InvalidRequest(f"'{name}' is not a picture, but {value!r:.40}.", param=name)
    return value


def _inside(value: Mapping[str, Any], name: str) -> Any:
    if value.get("file_id"):
        raise InvalidRequest(
            f"'{name}' names a file_id, but this server keeps no uploaded files; send the "
            "picture itself, as an upload or as a data URL.",
            param=name,
            code="unsupported_parameter",
        )
    inner = next((value[key] for key in _INSIDE if value.get(key)), None)
    if inner is None:
        raise InvalidRequest(f"'{name}' needs one of {', '.join(_INSIDE)}.", param=name)
    return inner


def _bytes(value: Source, name: str) -> bytes:
    if isinstance(value, bytes):
        return value
    text = value.partition(",")[2] if value.startswith("data:") else value
    if text[:1000].count("\n"):  # as `base64` writes it
        text = text.replace("\n", "").replace("\r", "")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as failure:
        raise InvalidRequest(
            f"'{name}' is neither an upload nor a data URL nor base64"
            + (", and no URL that begins with http:// or https://." if name in LINKS else "."),
            param=name,
        ) from failure


@functools.cache
def _queue(limit: int) -> Intake:
    return Intake(limit)


@functools.cache
def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
