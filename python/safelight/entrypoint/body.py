"""One dict from every kind of body that clients send: JSON, multipart, url-encoded.

The SDKs send `videos.create` as multipart, benchmarks as url-encoded forms, everybody else JSON.
Forms carry strings only and write structure with brackets: `a[b]`, `list[]`, `loras[][name]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, Any

import msgspec
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from safelight.entrypoint.guard import BodyLimit
from safelight.errors import InvalidRequest

MULTIPART, URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
MAX_FIELDS = 1000
MAX_FILES = 32
MAX_FIELD = 24 * 2**20
"""Bytes of one field of a multipart form: OpenAI takes data URLs of 20,971,520 characters."""
MAX_VALUES = 100_000
"""Values in a JSON body. A few bytes of it are a hundred in memory, and are read all at once."""
IN_MEMORY = 2**20
"""Bytes of a body that are handled in the event loop, and kept out of files."""

LIFTED = (
    *("extra_body", "extra_json", "extra_params", "extra_args"),
    *("diffusers_kwargs", "video_params"),
)
"""Objects whose fields count as if they stood beside them: names of SGLang Diffusion and
vLLM-Omni."""

_NAME = re.compile(r"(?P<head>[^\[\]]+)(?P<tail>(\[[^\[\]]*\])*)")
_KEY = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True)
class Body:
    values: dict[str, Any]
    """Without nulls; what stood in a nested `extra_body` is at the top."""
    strict: bool
    """False for forms, whose numbers and booleans are strings."""
    files: dict[str, list[bytes]] = field(default_factory=dict)
    """Uploads by field, in order: `image` and `image[]` are one field."""
    warnings: list[str] = field(default_factory=list)
    """What was ignored while its parts were read."""


async def read_body(request: Request) -> Body:
    """The request's body.

    Raises `PayloadTooLarge`, `Overloaded`, `InvalidRequest`, or an `HTTPException` 415.
    """
    state = request.app.state
    with BodyLimit(state.config.server.max_body_bytes, request.headers, state.intake) as limit:
        try:
            return await _read_any(Request(request.scope, limit.around(request.receive)))
        except ClientDisconnect as failure:  # nobody will read it
            raise InvalidRequest("The body ended early.", code="incomplete_body") from failure


async def _read_any(request: Request) -> Body:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == MULTIPART:
        values, files = await _form(request)
        return Body(_flat(values), strict=False, files=files)
    if kind in ("", "application/json", URLENCODED) or kind.endswith("+json"):
        return await _read(request, form=kind == URLENCODED)
    raise HTTPException(415, f"Send application/json or a form, not {kind:.80}.")


async def _read(request: Request, *, form: bool) -> Body:
    """JSON or a url-encoded form: read whole, but in memory only when it is all there."""
    size = 0
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as spool:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= IN_MEMORY:
                spool.write(chunk)
            else:
                await asyncio.to_thread(spool.write, chunk)
        spool.seek(0)
        if size <= IN_MEMORY:
            return _parsed(spool, form=form)
        return await asyncio.to_thread(_parsed, spool, form=form)


def _parsed(spool: IO[bytes], *, form: bool) -> Body:
    data = spool.read()
    # curl calls everything a form that it is not told is something else.
    form = form and not data[:MAX_FIELDS].lstrip().startswith(b"{")
    try:
        values = nested(_pairs(data)) if form else _object(data)
    finally:
        del data  # what goes wrong outlives this for a while, and its frames with it
    return Body(_flat(values), strict=not form)


def _pairs(data: bytes) -> list[tuple[str, str]]:
    fields, found = data.count(b"&") + 1, None
    with contextlib.suppress(ValueError):  # bad UTF-8, too; it would keep the data
        if fields <= MAX_FIELDS:
            found = urllib.parse.parse_qsl(
                data.decode("ascii"), keep_blank_values=True, errors="strict"
            )
    del data
    if found is None:
        raise InvalidRequest(
            f"The body is not a url-encoded form of UTF-8 text with at most {MAX_FIELDS} fields.",
            code="invalid_form",
        )
    return found


def _object(data: bytes) -> dict[str, Any]:
    value, wrong = {}, None
    if (commas := data.count(b",")) > MAX_VALUES:
        wrong = f"it has {commas} commas, and at most {MAX_VALUES} values are read"
    elif not data.isspace() and data:
        try:
            value = msgspec.json.decode(data)
        except (ValueError, RecursionError) as failure:  # bad UTF-8 is a ValueError too
            wrong = str(failure)
    del data  # and no chain: an error keeps its frames and what could not be decoded
    if wrong is not None:
        raise InvalidRequest(f"The body is not JSON: {wrong}", code="invalid_json")
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    return value


async def _form(request: Request) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """Its fields, and its uploads."""
    files: dict[str, list[bytes]] = {}
    async with request.form(
        max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD
    ) as form:
        items = form.multi_items()
        for name, value in items:
            if isinstance(value, UploadFile):
                files.setdefault(name.partition("[")[0], []).append(await value.read())
        return nested((n, v) for n, v in items if not isinstance(v, UploadFile)), files


def nested(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Form fields with their brackets resolved. Raises `InvalidRequest` for a repeated scalar."""
    values: dict[str, Any] = {}
    for name, value in items:
        found = _NAME.fullmatch(name)
        if found is None:
            raise InvalidRequest(f"The form field {name!r:.80} has no readable name.")
        _put(values, found["head"], _KEY.findall(found["tail"]), value)
    return values


def _put(target: dict[str, Any], head: str, keys: list[str], value: str) -> None:
    """Store `value` under `head[key][key]…`; an empty key appends to a list."""
    if not keys:
        if head in target:
            raise InvalidRequest(
                f"Duplicate parameter: '{head}'. Use '{head}[]' for a list.",
                param=head,
                code="duplicate_parameter",
            )
        target[head] = value
    elif keys[0] == "":
        _append(_container(target, head, list), keys[1:], value)
    else:
        _put(_container(target, head, dict), keys[0], keys[1:], value)


def _append(target: list[Any], keys: list[str], value: str) -> None:
    """`list[]=v` appends; `list[][key]=v` begins an object when its last one has the key."""
    if not keys:
        target.append(value)
        return
    if not target or not isinstance(target[-1], dict) or (len(keys) == 1 and keys[0] in target[-1]):
        target.append({})
    _put(target[-1], keys[0], keys[1:], value)


def _container(target: dict[str, Any], name: str, kind: type) -> Any:
    found = target.setdefault(name, kind())
    if not isinstance(found, kind):
        raise InvalidRequest(
            f"'{name}' is given both as a value and as a structure.",
            param=name,
            code="duplicate_parameter",
        )
    return found


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Drop nulls (the SDKs write "left out" so) and lift nested objects of extras to the top."""
    for name in LIFTED:
        values |= _lifted(name, values.pop(name, None))
    return {k: v for k, v in values.items() if v is not None}


def _lifted(name: str, extra: Any) -> dict[str, Any]:
    if isinstance(extra, str):  # in a form it is JSON text
        extra = _object(extra.encode())
    if extra is not None and not isinstance(extra, dict):
        raise InvalidRequest(f"'{name}' must be an object.", param=name)
    return extra or {}
