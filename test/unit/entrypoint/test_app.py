from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from fakes import stack
from safelight import config as configuration
from safelight.entrypoint.app import create_app
from safelight.entrypoint.server import address_of, listen
from safelight.errors import StartupFailed
from safelight.request import Sampling

ENVELOPE = {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/nowhere", 404, "not_found"),
        ("GET", "/v1/videos/", 404, "not_found"),
        ("PUT", "/v1/videos", 405, "method_not_allowed"),
        ("PUT", "/v1/images/generations", 405, "method_not_allowed"),
        ("GET", "/v1/videos/video_nobody", 404, "not_found"),
        ("GET", "/v1/images/image_nobody/content", 404, "not_found"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ("GET", "/v1/videos/..%2F..%2Fjobs.sqlite/content", 404, "not_found"),
    ],
)
def test_every_error_is_the_envelope(
    client: httpx2.Client, method: str, path: str, status: int, code: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    failure = answer.json()["error"]
    assert set(failure) == ENVELOPE
    assert (failure["code"], failure["type"]) == (code, "invalid_request_error")
    assert answer.headers["x-request-id"].startswith("req_")


def test_a_bug_is_an_envelope_without_a_trace(shared: stack.Stack) -> None:
    class Broken:
        ready = True

        @property
        def readiness(self) -> str:
            raise ZeroDivisionError("secret detail")

    app = create_app(Broken(), configuration.build({}))  # type: ignore[arg-type]
    answer = TestClient(app, raise_server_exceptions=False).get("/health/ready")
    assert answer.status_code == 500
    failure = answer.json()["error"]
    assert set(failure) == ENVELOPE
    assert (failure["type"], failure["code"]) == ("server_error", "internal_error")
    assert "secret" not in answer.text and "Traceback" not in answer.text
    assert answer.headers["x-request-id"] in failure["message"]


def test_request_ids_differ(client: httpx2.Client) -> None:
    ids = {client.get("/health/live").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_health(client: httpx2.Client) -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        assert client.get(path).json()["status"] == "ok"


def test_health_says_why_it_is_not_ready(tmp_path: Path) -> None:
    with (
        stack.running(tmp_path, ready=False) as running,
        httpx2.Client(base_url=running.base_url) as client,
    ):
        from safelight.wire import messages as m

        running.call(running.peer.next(m.Attach))
        assert client.get("/health/live").status_code == 200
        for path in ("/health", "/health/ready"):
            answer = client.get(path)
            assert answer.status_code == 503
            failure = answer.json()["error"]
            assert failure["code"] == "not_ready"
            assert "group" in failure["message"]
        assert client.get("/v1/models").status_code == 200
        # A job may come before the model is there: it is queued.
        assert client.post("/v1/videos", json={"prompt": "x"}).status_code == 200


def test_models(client: httpx2.Client) -> None:
    listed = client.get("/v1/models").json()
    (model,) = listed["data"]
    assert listed["object"] == "list"
    assert (model["id"], model["object"]) == ("lab/tiny", "model")
    assert isinstance(model["created"], int) and model["owned_by"]
    for path in ("lab/tiny", "lab%2Ftiny"):
        assert client.get(f"/v1/models/{path}").json() == model
    assert client.get("/v1/model_info").json()["model_path"] == "lab/tiny"


def test_the_api_key(tmp_path: Path) -> None:
    with (
        stack.running(tmp_path, api_key="geheim-ü") as running,
        httpx2.Client(base_url=running.base_url) as client,
    ):
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Bearer"},
            {"authorization": "Basic geheim"},
        ):
            answer = client.get("/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        right = {"authorization": "Bearer geheim-ü".encode()}
        assert client.get("/v1/models", headers=right).status_code == 200
        assert client.get("/health/ready").status_code == 200
        # Refused before the body is looked at.
        assert client.post("/v1/videos", content=b"{").status_code == 401


def test_the_schema_takes_the_sampling_fields_from_their_declaration(
    client: httpx2.Client,
) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/v1/videos", "/v1/images/generations"):
        content: dict[str, Any] = paths[path]["post"]["requestBody"]["content"]
        assert {"application/json", "multipart/form-data"} <= set(content)
        schema = content["application/json"]["schema"]
        assert set(Sampling.__struct_fields__) <= set(schema["properties"])
        assert schema["properties"]["num_inference_steps"]["maximum"] == 1000
        assert "default" not in schema["properties"]["seed"]
        assert schema["required"] == ["prompt"]


def test_port_0_takes_a_free_one_and_a_taken_one_is_explained() -> None:
    with listen("127.0.0.1", 0) as first:
        address = address_of(first)
        port = first.getsockname()[1]
        assert address == f"http://127.0.0.1:{port}"
        # Without it asyncio leaves Nagle's algorithm on, and every answer takes 40 ms more.
        assert first.proto == socket.IPPROTO_TCP
        with pytest.raises(
            StartupFailed, match=rf"127.0.0.1:{port}: Address already in use.*--port"
        ):
            listen("127.0.0.1", port)
    with pytest.raises(StartupFailed, match=r"Cannot listen on no.such.host.invalid"):
        listen("no.such.host.invalid", 0)


def test_no_torch_comes_in() -> None:
    program = (
        "import sys, safelight.entrypoint.__main__, safelight.entrypoint.app\n"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
