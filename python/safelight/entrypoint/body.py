"""One dict from every kind of body that clients send: JSON, multipart, url-encoded.

The SDKs send `videos.create` as multipart, benchmarks as url-encoded forms, everybody else JSON.
Forms carry strings only and write structure with brackets: `a[b]`, `list[]`, `loras[][name]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from safelight.entrypoint.guard import BodyLimit
from safelight.errors import InvalidRequest

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
MAX_FIELDS = 1000
MAX_FILES = 32
MAX_FIELD = 2**20  # bytes of one form field

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


async def read_body(request: Request) -> Body:
    """The request's body.

    Raises `PayloadTooLarge`, `InvalidRequest`, or an `HTTPException` 415.
    """
    limit = BodyLimit(request.app.state.config.server.max_body_bytes, request.headers)
    counted = Request(request.scope, limit.around(request.receive))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in FORMS:
        values, files = await _form(counted)
        return Body(_flat(values), strict=False, files=files)
    if kind in ("", "application/json") or kind.endswith("+json"):
        return Body(_flat(_object(await counted.body())), strict=True)
    raise HTTPException(415, f"Send application/json or a form, not {kind:.80}.")


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError) as failure:  # bad UTF-8 is a ValueError too
        raise InvalidRequest(f"The body is not JSON: {failure}", code="invalid_json") from failure
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
    """Drop nulls (the SDKs write "left out" so) and lift a nested `extra_body` to the top."""
    extra = values.pop("extra_body", None)
    if isinstance(extra, str):  # in a form it is JSON text
        extra = _object(extra.encode())
    if extra is not None and not isinstance(extra, dict):
        raise InvalidRequest("'extra_body' must be an object.", param="extra_body")
    return {k: v for k, v in {**values, **(extra or {})}.items() if v is not None}
