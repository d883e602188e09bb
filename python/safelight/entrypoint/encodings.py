"""The OpenAPI schema of a body in each of the encodings that `body.read_body` reads."""

from __future__ import annotations

from typing import Any


def in_every_encoding(schema: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's `content` of a request body whose fields `schema` describes."""
    upload = {"type": "string", "format": "binary"}
    return {
        "application/json": {"schema": schema},
        "multipart/form-data": {"schema": _as_form(schema, upload)},
        "application/x-www-form-urlencoded": {"schema": _as_form(schema, {"type": "string"})},
    }


def _as_form(schema: dict[str, Any], file: dict[str, str]) -> dict[str, Any]:
    """Fields of forms are never null, and those of any type are uploads or text."""
    properties = {}
    for name, one in schema.get("properties", {}).items():
        plain = without_null(one)
        typed = plain.keys() & {"type", "anyOf", "enum", "$ref"}
        properties[name] = plain if typed else plain | file
    return schema | {"properties": properties}


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Of a parameter or form field: what is left out is not null there."""
    kinds = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    if rest.get("default", ...) is None:
        del rest["default"]
    if len(kinds) == 1:
        return rest | kinds[0]
    return rest | {"anyOf": kinds} if kinds else rest
