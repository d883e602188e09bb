"""Examples of README and docs, as printed, against a live server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fakes.server import Server

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PORT = "127.0.0.1:30000"


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.skipif(shutil.which("jq") is None, reason="the examples use jq, which is not here")
def test_the_curl_examples_in_order(live_server: Server, tmp_path: Path) -> None:
    commands = [block for block in blocks("bash") if block.lstrip().startswith(("curl", "ID="))]
    assert len(commands) == 4
    for index, command in enumerate(commands):
        if "/content" in command:
            newest = live_server.client.get("/v1/videos").json()["data"][0]["id"]
            assert live_server.wait(newest)["status"] == "completed"
        script = command.replace(PORT, f"127.0.0.1:{live_server.port}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            check=False,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (index, done.stderr)
        if index == 1:
            assert done.stdout.strip() in ("queued", "in_progress", "completed")
    assert (tmp_path / "clip.mp4").read_bytes()[4:8] == b"ftyp"
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (64, 64)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_sdk_example(live_server: Server, tmp_path: Path) -> None:
    (code,) = [block for block in blocks("python") if "openai" in block]
    script = code.replace(PORT, f"127.0.0.1:{live_server.port}")
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "square.mp4").read_bytes()[4:8] == b"ftyp"
    assert done.stdout.startswith("http://127.0.0.1")


def test_the_python_example(tmp_path: Path) -> None:
    (code,) = [block for block in blocks("python") if "safelight.Engine" in block]
    script = tmp_path / "example.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "red.mp4").read_bytes()[4:8] == b"ftyp"
    assert "video/mp4" in done.stdout


@pytest.mark.skipif(shutil.which("jq") is None, reason="the examples use jq, which is not here")
def test_the_examples_of_events(live_server: Server, tmp_path: Path) -> None:
    page = ROOT / "docs" / "events.md"
    (shell,), (code,) = blocks("bash", page), blocks("python", page)
    for program in (["bash", "-euo", "pipefail", "-c", shell], [sys.executable, "-c", code]):
        script = program[-1].replace(PORT, f"127.0.0.1:{live_server.port}")
        done = subprocess.run(
            [*program[:-1], script],
            check=False,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
    events = (tmp_path / "events.txt").read_text()
    assert events.count("event: video.preview") == 3
    assert "event: video.completed" in events
    for name in ("partial-0.png", "partial-1.png", "partial-2.png", "final.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (64, 64)


@pytest.mark.skipif(shutil.which("jq") is None, reason="the examples use jq, which is not here")
def test_the_examples_of_images(live_server: Server, tmp_path: Path) -> None:
    (shell,) = blocks("bash", ROOT / "docs" / "images.md")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", shell.replace(PORT, f"127.0.0.1:{live_server.port}")],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert (done.returncode, done.stdout) == (0, "completed\n"), done.stderr
    with Image.open(tmp_path / "second.png") as picture:
        assert picture.size == (64, 64)
