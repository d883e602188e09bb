"""Every name of the manuals, each tried as `manuals/names/` says.

Flags, variables and keys go through the real command line, which starts nothing; endpoints, fields
and what is answered through real HTTP servers (see `fakes.manual_servers`).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from fakes import command_lines, manual_servers, manuals
from fakes.cases import Checkpoints
from fakes.command_lines import Started
from fakes.manual_servers import World
from fakes.manuals import Name


def rows(*kinds: str) -> Any:
    """The names of these kinds that are tried here."""
    found = [row for row in manuals.names() if row.kind in kinds and row.details.test is None]
    return pytest.mark.parametrize("row", found, ids=lambda row: row.id)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with manual_servers.world(tmp_path_factory.mktemp("manuals")) as made:
        yield made


# ----------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def values(checkpoints: Checkpoints, world: World) -> dict[str, str]:
    """What stands for `{...}`: the tiny checkpoints, the adapters."""
    found = {**command_lines.models(checkpoints), "loras": str(world.loras)}
    flux = command_lines.with_heads(found["flux"], world.loras.parent / "flux", 24)
    return {**found, "flux": flux}


def outcome(row: Name, status: int, started: list[Started], said: str) -> None:
    """Hold a command line to what its row says."""
    if refused := row.details.refused or command_lines.missing(row.details.needs):
        assert status == 2
        assert refused in said
        return
    assert status == 0, said
    (one,) = started
    for path, value in row.details.gives.items():
        assert one.setting(path) == value


@rows("flag")
def test_a_command_line(row: Name, values: dict[str, str], capsys: Any) -> None:
    given = shlex.split(manuals.filled(row.details.attempt, values))
    model = "wan" if row.of == "generate" else "flux"
    base = [row.of, *(["--prompt", "x"] if row.of == "generate" else [])]
    if not {"--model-path", "--model_name"} & set(given):
        base += ["--model-path", values[model]]
    if "--device" not in given and not row.details.cuda:
        base += ["--device", "cpu"]
    status, started = command_lines.run([*base, *given])
    outcome(row, status, started, capsys.readouterr().err)


@rows("key")
def test_a_key_of_a_config_file(
    row: Name, values: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    tried = row.details.attempt
    value = manuals.filled(tried, values) if isinstance(tried, str) else tried
    settings = {"model_path": values["wan"], "device": "cpu", row.name: value}
    path = command_lines.written(tmp_path, settings)
    status, started = command_lines.run(["generate", "--prompt", "x", "--config", str(path)])
    outcome(row, status, started, capsys.readouterr().err)


@rows("env")
def test_a_variable(
    row: Name, values: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """One with a meaning under our name; of the others it is said that they are not read."""
    command = ["serve", "--model-path", values["flux"], "--device", "cpu"]
    monkeypatch.setenv(row.name, str(row.details.attempt))
    assert command_lines.run(command)[0] == 0
    assert f"{row.name} is not read here" in capsys.readouterr().err
    if row.details.hint:
        return
    monkeypatch.delenv(row.name)
    monkeypatch.setenv(str(row.details.here), str(row.details.attempt))
    status, (started,) = command_lines.run(command)
    assert (status, capsys.readouterr().err) == (0, "")
    (value,) = started.config.model.default_sampling.values()
    assert float(value) == row.details.attempt


# ----------------------------------------------------------------------------------------- HTTP


@rows("endpoint")
def test_an_endpoint(row: Name, world: World, tmp_path: Path) -> None:
    manual_servers.reader_files(tmp_path)
    answer = manual_servers.send(world, row.name, cwd=tmp_path)
    assert answer.status_code == 200, answer.text
    paths = httpx2.get(f"{world.server('pictures').base_url}/openapi.json").json()["paths"]
    method, path = row.name.lower().split(" ")
    routes = {(verb, shape(route)) for route, verbs in paths.items() for verb in verbs}
    assert (method, shape(path)) in routes or path == "/docs"


def shape(path: str) -> str:
    """A route without the names of its parameters."""
    return "/".join("{}" if part.startswith("{") else part for part in path.lower().split("/"))


@rows("field")
def test_a_field(row: Name, world: World, tmp_path: Path) -> None:
    """It is accepted, and not among those that are ignored; or what the row says instead."""
    manual_servers.reader_files(tmp_path)
    details, name = row.details, row.name.partition("=")[0].removesuffix("[]")
    fields: dict[str, Any] = {}
    files = {row.name: details.attempt} if details.file else {}
    if not details.file:
        value = f"{world.loras}/{details.attempt}" if details.path else details.attempt
        fields = value if isinstance(value, dict) else {name: value}
        fields = msgspec.convert(in_files(fields, world), dict[str, Any])
    answer = manual_servers.send(world, row.of, fields=fields, files=files, cwd=tmp_path)
    assert answer.status_code == details.status, answer.text
    told = " ".join(answer.json().get("warnings", []))
    assert (name.replace("-", "_") in told) == details.warned, told


def in_files(value: Any, world: World) -> Any:
    """`{files}` as the address of the file server."""
    if isinstance(value, list):
        return [in_files(one, world) for one in value]
    if isinstance(value, dict):
        return {name: in_files(one, world) for name, one in value.items()}
    return value.replace("{files}", world.files) if isinstance(value, str) else value


@rows("answer")
def test_a_field_of_an_answer(row: Name, world: World, tmp_path: Path) -> None:
    manual_servers.reader_files(tmp_path)
    answer = manual_servers.send(world, row.of, cwd=tmp_path)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    *steps, last = row.name.split(".")
    for step in steps:
        found = next(iter(found.values())) if step == "*" else first(found)[step]
    assert (last in first(found)) != row.details.absent


def first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


RANGES = {
    "num_inference_steps": (0, 1001),
    "guidance_scale": (-1, 101),
    "width": (0, 100_000),
    "height": (-16, 100_000),
    "seed": (-1, 2**64),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, pair in RANGES.items() for value in pair]
)
def test_a_range_is_checked(name: str, value: int, world: World) -> None:
    answer = manual_servers.send(world, "POST /generate", fields={name: value})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == name
    assert name in error["message"]


@pytest.mark.parametrize("value", [-0.1, 2.1])
def test_the_range_of_a_lora_weight_is_checked(value: float, world: World) -> None:
    fields = {"lora_weight": value}
    answer = manual_servers.send(world, "POST /generate (adapters)", fields=fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "lora_weight"
