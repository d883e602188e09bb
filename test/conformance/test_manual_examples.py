"""The HTTP examples of the manuals, as printed, in bash, Python and node.

Only hosts, models and the reader's own files are replaced, by the table
`manuals/substitutions.yaml`. The servers make a file for every sample without computing it (see
`fakes.manual_servers`): 1280x720 in fifty steps is more than a CPU can do. What the same requests
come to with a real model is the matter of `test_openai_python.py`, of `test_manual_starts.py`, and
here of `SMALL`: examples that run once more against the built-in model, with its sizes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from fakes import manual_servers, manuals, node, probe
from fakes.manual_servers import World
from fakes.server import Server

HTTP = [
    key
    for key, example in manuals.examples().items()
    if example.kind == "http" or (example.kind == "start" and "\ncurl " in example.text)
]
SHELL = r"""
set -euo pipefail
curl() { command curl --fail-with-body "$@"; }
pip() { :; }
cache-dit-serve() { :; }
"""
"""An example has failed if one of its commands has, or was answered with an error. One installs and
starts what is running already."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with manual_servers.world(tmp_path_factory.mktemp("manuals")) as made:
        yield made


@pytest.mark.parametrize("key", HTTP)
def test_an_http_example(key: str, world: World, tmp_path: Path) -> None:
    example = manuals.examples()[key]
    said = run(example.language, script_of(key, world), tmp_path)
    for word in example.says:
        assert word in said
    for name, size in example.makes.items():
        check_file(tmp_path / name, size)


SMALL = (
    "diffgentor/quick-start",
    "sglang-api/python-image",
    "sglang-cli/curl-t2i",
    "sglang-cli/python-poll",
    "cache-dit/python-t2v",
)


@pytest.mark.parametrize("key", SMALL)
def test_an_http_example_with_the_built_in_model(
    key: str, live_server: Server, tmp_path: Path
) -> None:
    """As printed but for sizes and steps, against a real `safelight serve`."""
    example = manuals.examples()[key]
    (model,) = live_server.client.get("/v1/models").json()["data"]
    values = {"first": live_server.base_url, "second": "", "model_id": model["id"]}
    script = manuals.printed(whole(key), ("hosts", "small"), values)
    run(example.language, script, tmp_path)
    for name in example.makes:
        check_file(tmp_path / name, [64, 64])
        if name.endswith(".mp4"):
            assert len(probe.decode(tmp_path / name)) > 1


def run(language: str, script: str, directory: Path) -> str:
    """What it prints. Fails with all of it if it does not end well."""
    manual_servers.reader_files(directory)
    done = subprocess.run(
        command_of(language, script, directory),
        check=False,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, (script, done.stdout[-2000:], done.stderr)
    return done.stdout


def whole(key: str) -> str:
    """The example after those that it follows, each with what a reader would add."""
    parts = manuals.sequence(key)
    return "\n".join(part for one in parts for part in (one.preamble, one.text) if part)


def script_of(key: str, world: World) -> str:
    """The example after those that it follows, ready to run."""
    example = manuals.examples()[key]
    text = whole(key)
    values = world.values(example.server, text)
    return manuals.printed(text, ("hosts", "files", "names"), values)


def command_of(language: str, script: str, directory: Path) -> list[str]:
    if language == "bash":
        return ["bash", "-c", SHELL + script]
    if language == "python":
        return [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    assert language == "typescript"
    return ["node", str(node.javascript(script, directory))]


def check_file(path: Path, size: list[int] | None) -> None:
    if path.suffix == ".mp4":
        assert path.read_bytes()[4:8] == b"ftyp"
        return
    with Image.open(path) as picture:
        picture.load()
        assert size is None or list(picture.size) == size
