"""Two models behind one server: routed by name, loaded and unloaded while requests come."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.server import Server, serving

PATIENCE = 240.0
"""Seconds in which a model must have been loaded again, on a busy machine."""
pytestmark = pytest.mark.timeout(600)

HELD_OUT = "a red circle moving left on a black background"
CONFIG = """
models:
  - name: full
    path: builtin:shapes
  - name: half
    path: builtin:shapes
    dit_precision: bf16
    vae_precision: bf16
    ulysses_degree: 2
log_level: info
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("two")
    config = folder / "config.yaml"
    config.write_text(CONFIG)
    with serving(folder / "data", "--config", str(config)) as server:
        yield server


def statuses(server: Server) -> dict[str, str]:
    return {
        model["id"]: model["status"] for model in server.client.get("/v1/models").json()["data"]
    }


def clip(server: Server, model: str | None = None) -> bytes:
    """The file of a request with a fixed seed."""
    named = {} if model is None else {"model": model}
    job = server.create(prompt=HELD_OUT, seed=5, num_inference_steps=4, **named)
    assert server.wait(job, PATIENCE)["status"] == "completed"
    return server.client.get(f"/v1/videos/{job}/content").content


def test_the_name_chooses_the_model(two: Server) -> None:
    assert statuses(two) == {"full": "loaded", "half": "loaded"}
    full, half = clip(two, "full"), clip(two, "half")
    assert full != half
    assert clip(two, "full") == full
    assert clip(two) == full  # the first, where none is named
    answer = two.client.post("/v1/videos", json={"prompt": "x", "model": "quarter"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "'full', 'half'" in answer.json()["error"]["message"]


def test_loading_and_unloading_under_traffic_fails_no_request(two: Server) -> None:
    expected = {name: clip(two, name) for name in ("full", "half")}
    stop, ended = threading.Event(), []

    def keep_asking(model: str) -> None:
        while not stop.is_set():
            job = two.create(model=model, prompt=HELD_OUT, seed=5, num_inference_steps=4)
            video = two.wait(job, PATIENCE)
            content = two.client.get(f"/v1/videos/{job}/content").content
            ended.append((model, video["status"], content == expected[model]))

    clients = [threading.Thread(target=keep_asking, args=(name,)) for name in expected]
    for client in clients:
        client.start()
    try:
        for verb, status in (("unload", "unloaded"), ("load", "loaded")):
            answer = two.client.post(f"/v1/models/{verb}", json={"model": "half"}, timeout=PATIENCE)
            assert answer.status_code == 200, answer.text
            if verb == "load":
                assert answer.json()["status"] == status
    finally:
        stop.set()
        for client in clients:
            client.join(PATIENCE)
    assert {model for model, *_ in ended} == {"full", "half"}
    assert all(status == "completed" and same for _, status, same in ended), ended


def test_an_unloaded_model_has_no_processes_and_comes_back_for_a_request(two: Server) -> None:
    def ranks() -> int:
        found = two.process.children(recursive=True)
        return sum("safelight.worker" in process.cmdline() for process in found)

    expected, before = clip(two, "half"), ranks()
    answer = two.client.post("/v1/models/unload", json={"model": "half"}, timeout=PATIENCE)
    assert answer.json()["status"] == "unloaded"
    assert ranks() == before - 2
    assert statuses(two) == {"full": "loaded", "half": "unloaded"}
    assert clip(two, "half") == expected
    assert statuses(two)["half"] == "loaded"


@pytest.mark.parametrize(
    ("verb", "body", "status", "param"),
    [
        ("load", {"model": "third"}, 404, "model"),
        ("unload", {"model": "third"}, 404, "model"),
        ("load", {}, 400, "model"),
        ("load", {"model": 3}, 400, "model"),
    ],
)
def test_what_cannot_be_loaded_is_said(
    two: Server, verb: str, body: dict[str, object], status: int, param: str
) -> None:
    answer = two.client.post(f"/v1/models/{verb}", json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


def test_the_least_recently_used_makes_room(tmp_path: Path) -> None:
    flags = ("--model", "a=builtin:shapes", "--model", "b=builtin:shapes")
    with serving(tmp_path / "data", *flags, "--max-loaded-models", "1") as server:
        assert statuses(server) == {"a": "loaded", "b": "unloaded"}
        jobs = [server.create(model=name, num_inference_steps=4) for name in "abab"]
        assert [server.wait(job, PATIENCE)["status"] for job in jobs] == ["completed"] * 4
        assert sorted(statuses(server).values()).count("loaded") <= 1
