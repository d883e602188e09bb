"""A checkpoint that cannot be used: one line with the file and what to do, and nothing is left."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.hub import serving
from safelight.builtin import builtin_model

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("SAFELIGHT_", "HF_"))}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(builtin_model("shapes"), tmp_path / "model"))


def generate(
    model_path: Path | str, tmp_path: Path, *, limit: int | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The command with every directory it could leave something in inside `tmp_path`.

    `limit`: bytes a file may have, for all its processes.
    """

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    run = tmp_path / "run"
    run.mkdir()
    places = {"XDG_RUNTIME_DIR": run, "TMPDIR": run, "XDG_CACHE_HOME": tmp_path / "cache"}
    return subprocess.run(
        [
            *(sys.executable, "-m", "safelight", "generate", "-p", "x", "--device", "cpu"),
            *("--model-path", str(model_path), "-o", str(tmp_path / "outputs")),
        ],
        env={**ENVIRONMENT, **{name: str(path) for name, path in places.items()}, **variables},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limited,
    )


def check_nothing_is_left(tmp_path: Path) -> None:
    left = [path.name for path in (tmp_path / "run").iterdir()]
    assert [name for name in left if not name.startswith("torchinductor_")] == []  # torch's cache
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "outputs").exists()
    assert processes_in(tmp_path) == []


def processes_in(tmp_path: Path) -> list[str]:
    """Command lines that name a directory of this test."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:  # it has just ended
            continue
        if str(tmp_path) in line:
            lines.append(line)
    return lines


def missing(model: Path) -> str:
    (model / WEIGHTS).unlink()
    return f"{model / WEIGHTS} is missing. Fetch it again"


def truncated(model: Path) -> str:
    path = model / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    sizes = f"{len(content) - 1000} bytes of {len(content)}"
    return f"{path} is cut short: it has {sizes}. Fetch it again"


def pickled(model: Path) -> str:
    path = (model / WEIGHTS).rename(model / "transformer" / "diffusion_pytorch_model.bin")
    return f"{path} is not safetensors"


def unknown(model: Path) -> str:
    path = model / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderKLNowhere"]}))
    return f"{path} names the class AutoencoderKLNowhere for vae"


@pytest.mark.parametrize("damage", [missing, truncated, pickled, unknown])
def test_it_is_refused_before_anything_starts(
    model: Path, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    expected = damage(model)
    done = generate(model, tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert expected in line
    check_nothing_is_left(tmp_path)


def test_a_wrong_shape_ends_the_start(model: Path, tmp_path: Path) -> None:
    """Only the model itself knows its shapes, so it is a rank that says it."""
    path = model / "transformer" / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "ffn_dim": settings["ffn_dim"] + 1}))
    done = generate(model, tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"{model / WEIGHTS}: blocks.0.ffn.net.0.proj.bias of transformer has the shape" in line
    assert "Fetch both again" in line
    check_nothing_is_left(tmp_path)


def test_no_space_for_a_download(model: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the write fails in the same place."""
    home = tmp_path / "huggingface"
    with serving({"someone/tiny": model}) as hub:
        done = generate(
            *("someone/tiny", tmp_path), limit=200_000, HF_ENDPOINT=hub.url, HF_HOME=str(home)
        )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"There is no space left for someone/tiny in {home}" in line
    assert "set HF_HOME" in line
    assert list(home.rglob("*.incomplete")) == []
    check_nothing_is_left(tmp_path)


def test_no_space_for_the_run(model: Path, tmp_path: Path) -> None:
    """Not even for the configuration that the processes read."""
    done = generate(model, tmp_path, limit=100)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "No space" in line
    check_nothing_is_left(tmp_path)
