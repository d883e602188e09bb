"""Adapters over HTTP with real ranks: set, mixed, merged, taken out, refused, and after a crash."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.lora import write
from fakes.server import Server, serving
from safelight.builtin import builtin_model

LAYERS = ["to_q", "to_k", "to_v"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of two adapters for the built-in model, and one that is for none."""
    directory = tmp_path_factory.mktemp("loras")
    shapes = Path(builtin_model("shapes"))
    for seed, name in enumerate(("style", "face")):
        write(shapes, directory / name, seed, ["transformer"], layers=LAYERS)
    whole = (directory / "face" / "pytorch_lora_weights.safetensors").read_bytes()
    renamed = whole.replace(b"to_q", b"to_x").replace(b"to_k", b"to_y").replace(b"to_v", b"to_z")
    (directory / "other.safetensors").write_bytes(renamed)
    return directory


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("lora") / "data"
    with serving(data, "--lora-dir", str(library), "--no-embed-parameters") as running:
        yield running


def picture(server: Server, **fields: Any) -> str:
    """The same picture, in base64."""
    body = {
        "prompt": "a red circle",
        "size": "32x32",
        "seed": 3,
        "num_inference_steps": 4,
        "response_format": "b64_json",
        **fields,
    }
    answer = server.client.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"][0]["b64_json"])


def put(server: Server, name: str, **fields: Any) -> dict[str, Any]:
    answer = server.client.post("/v1/set_lora", json={"lora_nickname": name, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_what_is_set_of_a_request_and_of_neither(server: Server) -> None:
    base = picture(server)
    mine = picture(server, lora=[{"name": "style", "scale": 0.5}])
    assert mine != base
    active = put(server, "style", strength=0.5)["active"]
    assert active["transformer"][0]["num_lora_layers_with_weights"] > 0
    assert picture(server, lora=[]) == base
    in_force = picture(server)
    assert in_force != base
    assert picture(server, lora="face") not in (base, mine, in_force)
    assert picture(server, lora=[{"name": "style", "scale": 0.5}]) == mine
    assert server.client.post("/v1/unmerge_lora_weights").status_code == 200
    assert picture(server) == base
    assert server.client.post("/v1/merge_lora_weights").status_code == 200
    assert picture(server) == in_force
    assert server.client.post("/remove-lora").status_code == 200
    assert picture(server) == base


def test_one_of_another_model_is_refused_and_harms_nothing(server: Server) -> None:
    base = picture(server)
    set_ = server.client.post("/v1/set_lora", json={"lora_nickname": "other"})
    mine = server.client.post("/v1/images/generations", json={"prompt": "x", "lora": "other"})
    for answer, param in ((set_, "lora_path"), (mine, "lora")):
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
        assert "'other'" in answer.json()["error"]["message"]
    assert server.client.get("/v1/list_loras").json()["active"] == {}
    assert picture(server) == base


def test_what_is_in_force_survives_the_death_of_every_process(
    server: Server, library: Path
) -> None:
    put(server, "kept", lora_path=str(library / "face"), strength=0.7)
    before = picture(server)
    killed = ["safelight.entrypoint", "safelight.scheduler", "safelight.worker"]
    for name in killed:
        process = server.children()[name]
        process.kill()
        process.wait(30)
        server.wait_ready()
    assert picture(server) == before
    active = server.client.get("/v1/list_loras").json()["active"]
    assert [one["strength"] for one in active["transformer"]] == [0.7]
    server.client.post("/remove-lora", json={"lora_name": "kept"}).raise_for_status()


def generated(tmp_path: Path, name: str, *flags: str) -> bytes:
    command = [sys.executable, "-m", "safelight", "generate", "-p", "a red circle"]
    command += ["--num-frames", "1", "--steps", "2", "--seed", "3", "--size", "32x32", *flags]
    command += ["--output-path", str(tmp_path), "--output-file-name", name, "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (tmp_path / name).read_bytes()


def test_generate_takes_adapters(tmp_path: Path, library: Path) -> None:
    flags = ("--no-embed-parameters", "--disable-fuse-lora")
    style = str(library / "style")
    named = generated(tmp_path, "a.png", *flags, "--lora-dir", str(library), "--lora", "style:0.5")
    started = generated(tmp_path, "b.png", *flags, "--lora-path", style, "--lora-scale", "0.5")
    assert named == started != generated(tmp_path, "c.png", *flags)


def test_a_name_that_is_not_there_is_said_before_anything_starts(library: Path) -> None:
    command = [sys.executable, "-m", "safelight", "generate", "-p", "x", "--lora", "stile"]
    done = subprocess.run(
        [*command, "--lora-dir", str(library)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--lora stile" in done.stderr and "style" in done.stderr


def test_the_catalog_is_readable(server: Server) -> None:
    put(server, "style")
    catalog = json.loads((server.data_dir / "adapters" / "catalog.json").read_bytes())
    assert [one["name"] for one in catalog["chosen"]["shapes"]["adapters"]] == ["style"]
    server.client.post("/remove-lora").raise_for_status()
