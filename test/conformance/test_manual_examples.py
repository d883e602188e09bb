"""The HTTP examples of the manuals, as printed, in bash, Python and node.

Only hosts, models and the reader's own files are replaced, by the table
`manuals/substitutions.yaml`. The servers make a file for every sample without computing it (see
`fakes.manual_servers`): 1280x720 in fifty steps is more than a CPU can do. What the same requests
come to with a real model is the matter of `test_openai_python.py` and `test_readme.py`, and of
`test_manual_starts.py`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from fakes import manual_servers, manuals, node
from fakes.manual_servers import World

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
    manual_servers.reader_files(tmp_path)
    script = script_of(key, world)
    done = subprocess.run(
        command_of(example.language, script, tmp_path),
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, (script, done.stdout[-2000:], done.stderr)
    for word in example.says:
        assert word in done.stdout
    for name, size in example.makes.items():
        check_file(tmp_path / name, size)


def script_of(key: str, world: World) -> str:
    """The example after those that it follows, ready to run."""
    example = manuals.examples()[key]
    parts = manuals.sequence(key)
    text = "\n".join(part for one in parts for part in (one.preamble, one.text) if part)
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
