"""Other clients that speak OpenAI's protocol, unchanged, each in an environment of its own.

The server is real HTTP, manager and store over an engine that makes small real files at once.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fakes import isolated, manual_servers, node
from fakes.engine_peer import CARD
from fakes.node import CLIENTS
from fakes.stack import Stack, running

pytestmark = pytest.mark.timeout(900)  # the first run installs them

ANYTHING = msgspec.structs.replace(
    CARD,
    tasks=("text-to-video", "text-to-image", "image-to-video", "image-to-image", "inpainting"),
    parameters=(*CARD.parameters, "strength"),
    max_images=16,
)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with running(tmp_path / "data", card=ANYTHING) as stack:
        yield stack


def check(command: list[str | Path], directory: Path, last: str) -> None:
    """Run a client's script in a directory of pictures; it prints `last` at its end."""
    manual_servers.reader_files(directory)
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, check=False, timeout=170
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == last


def test_openai_python_2(stack: Stack, tmp_path: Path) -> None:
    script = CLIENTS / "openai_python.py"
    check([isolated.interpreter("openai-2"), script, stack.base_url], tmp_path, "errors")


def test_litellm(stack: Stack, tmp_path: Path) -> None:
    script = CLIENTS / "litellm_client.py"
    command = [isolated.interpreter("litellm"), script, stack.base_url, ANYTHING.name]
    check(command, tmp_path, "video_list")


def test_openai_node_7(stack: Stack, tmp_path: Path) -> None:
    script = node.beside_packages(CLIENTS / "openai_node.mjs", "node", tmp_path)
    command = ["node", script, stack.base_url, tmp_path / "input.png"]
    check(command, tmp_path, "errors")
