"""`/docs`: the OpenAPI document as one page that needs no script and nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from safelight.entrypoint.document import Operation, operations

router = APIRouter(include_in_schema=False)

_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
summary { cursor: pointer; font-family: ui-monospace, monospace; padding: .2rem 0 }
summary b { display: inline-block; min-width: 4.5rem }
details > div { margin: 0 0 1rem 1.2rem }
td, th { text-align: left; vertical-align: top; padding: .1rem .8rem .1rem 0 }
pre { background: #8882; padding: .6rem; overflow-x: auto }
:root { color-scheme: light dark }
"""


@router.get("/docs")
async def docs(http: Request) -> HTMLResponse:
    """Every endpoint, its fields and an example."""
    return HTMLResponse(render(http.app.openapi(), str(http.base_url)), headers=_HEADERS)


def render(document: dict[str, Any], base: str) -> str:
    """The page; `base` is the server's address, ending in a slash."""
    info = document["info"]
    return "".join(
        (
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])}",
            f"</title><style>{_STYLE}</style><h1>{escape(info['title'])} ",
            f"{escape(info['version'])}</h1><p>{escape(info['description'])} As data: ",
            "<a href='/openapi.json'>/openapi.json</a>.</p>",
            *_sections(document, base),
        )
    )


def _sections(document: dict[str, Any], base: str) -> Iterator[str]:
    """One a tag, in the order in which they first appear."""
    found: dict[str, list[str]] = {}
    for path, method, operation in operations(document):
        tag = operation.get("tags", ["other"])[0]
        found.setdefault(tag, []).append(_operation(path, method, operation, base))
    for tag, parts in found.items():
        yield f"<h2>{escape(tag)}</h2>{''.join(parts)}"


def _operation(path: str, method: str, operation: Operation, base: str) -> str:
    parts = [
        f"<details><summary><b>{method.upper()}</b> {escape(path)}</summary><div>",
        f"<p>{escape(operation.get('description') or operation.get('summary', ''))}</p>",
        _table("Parameter", _parameters(operation)),
    ]
    content = operation.get("requestBody", {}).get("content", {})
    if "application/json" in content:
        json_body = content["application/json"]
        parts.append(_table("Field", _fields(json_body["schema"])))
        parts.append(_curl(path, method, json_body.get("example"), base))
        parts.append(f"<p>Bodies: {escape(', '.join(content))}</p>")
    statuses = ", ".join(operation["responses"])
    return "".join((*parts, f"<p>Answers: {escape(statuses)}</p></div></details>"))


def _parameters(operation: Operation) -> Iterator[tuple[str, str, str]]:
    for one in operation.get("parameters", ()):
        yield f"{one['name']} ({one['in']})", _kind(one["schema"]), one.get("description", "")


def _fields(schema: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, one in schema.get("properties", {}).items():
        yield name, _kind(one), one.get("description", "")


def _kind(schema: dict[str, Any]) -> str:
    """A type in words, as short as it can be."""
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    kinds = [_kind(one) for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    bounds = [f"{sign} {schema[key]}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([" or ".join(kinds) or str(schema.get("type", "any")), *bounds])


_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _table(head: str, rows: Iterator[tuple[str, str, str]]) -> str:
    cells = "".join(
        f"<tr><td>{escape(name)}<td>{escape(kind)}<td>{escape(text)}" for name, kind, text in rows
    )
    return cells and f"<table><tr><th>{head}<th>Type<th>{cells}</table>"


def _curl(path: str, method: str, example: object, base: str) -> str:
    if example is None:
        return ""
    body = json.dumps(example, indent=2).replace("'", "'\\''")
    text = (
        f"curl -X {method.upper()} {base.rstrip('/')}{path} \\\n"
        f"  -H 'Content-Type: application/json' \\\n  -d '{body}'"
    )
    return f"<pre>{escape(text)}</pre>"
