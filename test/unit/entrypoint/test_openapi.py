"""The OpenAPI document, by construction: what holds for every route that there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from fakes import stack
from fakes.engine_peer import CARD
from safelight.entrypoint.document import MAKERS, UNSAFE, operations
from safelight.entrypoint.examples import EXAMPLES

OPEN = {"/", "/health", "/health/live", "/health/ready"}
"""What needs no key."""
KINDS = {"application/json", "multipart/form-data", "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client without the key."""
    data: Path = tmp_path_factory.mktemp("locked")
    with (
        stack.running(data, api_key="key") as running,
        httpx2.Client(base_url=running.base_url, timeout=30) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def able(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client of a server whose model can do what the examples show, and has it loaded."""
    tasks = ("text-to-video", "text-to-image", "image-to-image")
    card = msgspec.structs.replace(CARD, tasks=tasks, max_images=1)
    with (
        stack.running(tmp_path_factory.mktemp("able"), card=card) as running,
        httpx2.Client(base_url=running.base_url, timeout=30) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def document(locked: httpx2.Client) -> dict[str, Any]:
    found: dict[str, Any] = locked.get("/openapi.json").json()
    return found


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids)) > 40
    for path, method, operation in operations(document):
        assert operation["tags"], path
        assert operation["description"], f"{method} {path}"


def test_every_operation_says_how_it_fails(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        answers = set(operation["responses"])
        assert "500" in answers and not {"422", "default"} & answers, path
        assert any(status < "300" for status in answers) or "characters" in path, path
        if "requestBody" in operation:
            assert {"400", "413", "415", "429", "503"} <= answers, path
        if "{" in path:
            assert "404" in answers, path
        if "security" in operation:
            assert "401" in answers and ("403" in answers) == (method in UNSAFE), path
    reasons = document["components"]["responses"]
    for response in reasons.values():
        schema = response["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorEnvelope"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_body_comes_in_three_encodings_with_an_example(document: dict[str, Any]) -> None:
    bodies = {
        path: operation["requestBody"]["content"]
        for path, _, operation in operations(document)
        if "requestBody" in operation
    }
    assert set(bodies) == set(EXAMPLES)
    for path, content in bodies.items():
        assert set(content) == KINDS, path
        assert content["application/json"]["example"] == EXAMPLES[path]
        known = content["application/json"]["schema"]["properties"]
        assert set(EXAMPLES[path]) <= set(known), path


@pytest.mark.parametrize(
    "path", ["/generate", "/load-model", "/v1/images/generations", "/v1/images/edits", "/v1/videos"]
)
def test_examples_do_what_they_show(able: httpx2.Client, path: str) -> None:
    answer = able.post(path, json=EXAMPLES[path])
    assert answer.status_code == 200, answer.text
    assert "warnings" not in answer.json()


def test_nothing_is_null_where_null_cannot_be_sent(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            assert "null" not in str(parameter["schema"]), (path, parameter["name"])
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            if kind != "application/json":
                for name, field in content["schema"]["properties"].items():
                    assert {"type": "null"} not in field.get("anyOf", ()), (path, name)
                    assert field.get("default", 0) is not None, (path, name)


def test_links_name_routes_that_are_there(document: dict[str, Any]) -> None:
    ids = {operation["operationId"]: path for path, _, operation in operations(document)}
    for (path, _), parameter in MAKERS.items():
        links = document["paths"][path]["post"]["responses"]["200"]["links"]
        assert links
        for name, link in links.items():
            assert link["operationId"] == name and f"{{{parameter}}}" in ids[name]


def test_what_is_not_open_needs_the_key(locked: httpx2.Client, document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        url = re.sub(r"\{[^}]*\}", "1", path)
        answer = locked.request(method, url)
        assert (answer.status_code != 401) == (path in OPEN), f"{method} {path}"
        assert ("security" in operation) == (path not in OPEN), f"{method} {path}"
    for path in ("/docs", "/openapi.json"):
        assert locked.get(path).status_code == 200


def test_nothing_is_changed_without_the_key(document: dict[str, Any]) -> None:
    """And so by no GET: browsers send those for any page, with what they have of credentials."""
    for path, method, operation in operations(document):
        assert method in (*UNSAFE, "get", "head"), path
        assert method == "get" or "security" in operation, f"{method} {path}"
        assert method != "get" or "requestBody" not in operation, path
