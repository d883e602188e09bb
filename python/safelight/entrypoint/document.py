"""The OpenAPI document: what FastAPI derives from the routes, with the errors that they answer and
an example of every body."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from safelight.entrypoint.encodings import without_null
from safelight.entrypoint.examples import EXAMPLES
from safelight.entrypoint.schema import ErrorEnvelope

Operation = dict[str, Any]

FILES = ("/content", "/previews/{number}")
"""How the paths of routes end that answer with files."""
UNSAFE = ("post", "put", "patch", "delete")
_ID = "$response.body#/id"
MAKERS = {
    ("/v1/videos", _ID): "video_id",
    ("/v1/videos/{video_id}/remix", _ID): "video_id",
    ("/v1/images/generations", _ID): "image_id",
    ("/v1/webhook_endpoints", _ID): "webhook_endpoint_id",
}
"""Paths of routes that make something, where its id stands in their answers, and the parameter of
other routes that it is."""
_ENVELOPE = {"$ref": f"#/components/schemas/{ErrorEnvelope.__name__}"}
_REASONS = {
    400: "A field, parameter or picture is wrong; `param` names it.",
    401: "The key is missing or wrong.",
    403: "A web page of another site sent it, and the server has no key.",
    404: "There is no such job, model or content.",
    409: "The job was stopped while this request waited for it.",
    413: "The body is over the limit.",
    415: "Neither JSON nor a form.",
    416: "The file does not have that range.",
    429: "The queue is full; `Retry-After` says when to come back.",
    500: "The model failed, or the server made an error.",
    503: "Not ready, or going down.",
}


class Application(FastAPI):
    """Describes itself with every status that it answers."""

    def openapi(self) -> dict[str, Any]:
        fresh = self.openapi_schema is None
        document = super().openapi()
        if fresh:
            for path, method, operation in operations(document):
                _complete(path, method, operation)
            _link(document)
            document["components"]["responses"] = {str(s): _response(s) for s in _REASONS}
        return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, Operation]]:
    """Path, method and operation of all."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _response(status: int) -> dict[str, Any]:
    schema = {"application/json": {"schema": _ENVELOPE}}
    response: dict[str, Any] = {"description": _REASONS[status], "content": schema}
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        seconds = {"type": "integer", "minimum": 1, "maximum": 60}
        response["headers"] = {"Retry-After": {"schema": seconds, "description": "Seconds."}}
    return response


def _complete(path: str, method: str, operation: Operation) -> None:
    responses = operation["responses"]
    if responses.pop("default", None) is not None:
        for status in sorted(_statuses(path, method, operation)):
            responses.setdefault(str(status), _ref(status))
    operation["responses"] = responses = dict(sorted(responses.items()))
    if path.endswith(FILES):
        _add_ranges(responses)
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = without_null(parameter["schema"])
    if "requestBody" in operation and path in EXAMPLES:
        operation["requestBody"]["content"]["application/json"]["example"] = EXAMPLES[path]


def _ref(status: int) -> dict[str, str]:
    return {"$ref": f"#/components/responses/{status}"}


def _statuses(path: str, method: str, operation: Operation) -> set[int]:
    """What may go wrong, from what the operation takes."""
    found = {500}
    if "security" in operation:
        found |= {401}
        if method in UNSAFE:
            found |= {403}
    if operation.get("parameters"):
        found |= {400}
    if {"after", "model"} & {one["name"] for one in operation.get("parameters", ())}:
        found |= {404}
    if "{" in path:
        found |= {404, 503}
    if "requestBody" in operation:
        found |= {400, 404, 409, 413, 415, 429, 503}
    if path.startswith("/health"):
        found |= {503}
    return found


def _link(document: dict[str, Any]) -> None:
    """Say which answers have the ids that other routes take."""
    takers: dict[str, list[str]] = {parameter: [] for parameter in set(MAKERS.values())}
    for path, _, operation in operations(document):
        for parameter in takers:
            if f"{{{parameter}}}" in path:
                takers[parameter].append(operation["operationId"])
    for (path, pointer), parameter in MAKERS.items():
        answer = document["paths"].get(path, {}).get("post", {}).get("responses", {}).get("200")
        if answer is not None:
            answer["links"] = {
                taker: {"operationId": taker, "parameters": {parameter: pointer}}
                for taker in takers[parameter]
            }


def _add_ranges(responses: dict[str, Any]) -> None:
    """Of a route that answers with a file, whole or in part."""
    responses["206"] = responses["200"] | {"description": "The range that was asked for."}
    responses["304"] = {"description": "The client has it, by the tag it sent."}
    responses["416"] = _ref(416)
