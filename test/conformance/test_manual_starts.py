"""The manuals' examples that start something: `serve` and `generate` as printed.

All run in bash, where a function stands for the tool and notes what it was given; the real command
line then takes that, in this process, up to the start: configuration, files and layout are checked,
no rank is started. Really started, with all processes, are one `serve` a manual and the `generate`
examples, on tiny checkpoints and with as many ranks as printed, on the CPU.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fakes import command_lines, lora, manual_servers, manuals, probe, zoo_flux
from fakes.cases import Checkpoints
from fakes.server import Server

STARTS = {k: e for k, e in manuals.examples().items() if e.kind in ("start", "generate")}
ELSEWHERE = [key for key, e in manuals.examples().items() if e.kind == "elsewhere"]
CONFIGS = [key for key, e in manuals.examples().items() if e.kind == "config"]
FOREIGN = ("nvidia-smi", "nvcc", "curl", "python", "sudo", "lsof")
"""Programs of the machine, which examples call beside the tool's."""

NOTE = r"""
set -euo pipefail
safelight() {
  { printf '%s\0' "$@"; env -0 | grep -z '^SAFELIGHT_' || true; } > "$NOTES/$EPOCHREALTIME-$BASHPID"
}
"""
ON_CPU = {
    "SAFELIGHT_DEVICE": "cpu",
    "SAFELIGHT_CPU_THREADS": "1",
}
OWN = {name: value for name, value in os.environ.items() if not name.startswith("SAFELIGHT_")}


@pytest.fixture(scope="module")
def real(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for `{...}`: the tiny checkpoints, the adapters. The tiny Qwen-Image-Edit has a
    processor that other processes lack: FLUX.1 Kontext edits in its place."""
    root = tmp_path_factory.mktemp("loras")
    manual_servers.write_adapters(root)
    found = command_lines.models(checkpoints)
    fitting = lora.write(Path(found["qwen"]), root / "written", 1, ("transformer",))
    shutil.copyfile(fitting, root / "model.safetensors")
    edits = str(checkpoints.made(zoo_flux.tiny_kontext))
    return {**found, "qwen_edit": edits, "loras": str(root)}


@pytest.fixture(scope="module")
def values(
    real: dict[str, str], checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The same for what is not started; three ranks can share FLUX.1's 24 heads, not a tiny
    model's four."""
    root = tmp_path_factory.mktemp("heads")
    flux = command_lines.with_heads(real["flux"], root / "flux", 24)
    return {**real, **command_lines.models(checkpoints), "flux": flux}


def script_of(key: str, values: Mapping[str, str]) -> str:
    return manuals.printed(manuals.examples()[key].text, ("tools", "models"), values)


def noted(script: str, directory: Path) -> list[tuple[list[str], dict[str, str]]]:
    """Run it in bash: the arguments and `SAFELIGHT_*` variables of every call of the tool, in
    their order; where some ran beside others, sorted."""
    notes = directory / "notes"
    notes.mkdir()
    shims = "".join(f"{name}() {{ :; }}\n" for name in FOREIGN)
    done = subprocess.run(
        ["bash", "-c", NOTE + shims + script + "\nwait"],
        check=False,
        cwd=directory,
        env={**OWN, "NOTES": str(notes)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    calls = [split(path.read_text()) for path in sorted(notes.iterdir())]
    return sorted(calls, key=lambda call: call[0]) if "&\n" in script else calls


def split(note: str) -> tuple[list[str], dict[str, str]]:
    parts = note.removesuffix("\0").split("\0")
    variables = dict(part.split("=", 1) for part in parts if part.startswith("SAFELIGHT_"))
    return [part for part in parts if not part.startswith("SAFELIGHT_")], variables


@pytest.mark.parametrize("key", STARTS)
def test_a_start(
    key: str,
    values: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    example = STARTS[key]
    calls = noted(script_of(key, values), tmp_path)
    assert len(calls) == len(example.starts)
    manual_servers.reader_files(tmp_path)
    (tmp_path / "config.json").write_text('{"prompt": "x"}')
    monkeypatch.chdir(tmp_path)
    for (arguments, variables), expected in zip(calls, example.starts, strict=True):
        with monkeypatch.context() as patch:
            for name, value in ({"SAFELIGHT_DEVICE": "cpu"} | variables).items():
                patch.setenv(name, value)
            if "-g" in arguments:
                patch.delenv("SAFELIGHT_DEVICE")
            check_start(arguments, expected, capsys)


def check_start(arguments: list[str], expected: Mapping[str, Any], capsys: Any) -> None:
    """Hold one call to what the data say: `refused` with words, `says` words, or settings."""
    wanted = dict(expected)
    status, started = command_lines.run(arguments)
    out = capsys.readouterr()
    if words := wanted.pop("refused", None):
        assert (status, started) == (2, [])
        assert words in out.err
        return
    if package := command_lines.missing(wanted.pop("needs", None)):
        assert status == 2 and package in out.err
        return
    assert status == 0, out.err
    if words := wanted.pop("says", None):
        assert all(word in out.out for word in words)
        return
    assert {path: started[0].setting(path) for path in wanted} == wanted


@pytest.mark.parametrize("key", CONFIGS)
def test_a_config_file(key: str, values: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    """It loads whole, and the command line wins over it."""
    example = manuals.examples()[key]
    path = tmp_path / f"config.{example.language}"
    path.write_text(script_of(key, values))
    more = ["--text-encoder-precisions", "fp16"]  # the tiny model has one text encoder, not two
    more += ["--device", "cpu", "--seed", "7"]
    status, (started,) = command_lines.run(["generate", "--config", str(path), *more])
    assert status == 0, capsys.readouterr().err
    settings = {"sampling.seed": 7, "sampling.num_frames": 45, "sampling.width": 1280}
    settings |= {"parallel.num_gpus": 2, "parallel.sp_degree": 2, "model.vae_precision": "fp16"}
    assert {name: started.setting(name) for name in settings} == settings


@pytest.mark.parametrize("key", ELSEWHERE)
def test_examples_for_other_programs(key: str) -> None:
    """What is only for the machine, or for pip, calls no tool and no server of the manual's."""
    example = manuals.examples()[key]
    tools = manuals.substitutions()["tools"].keys() - {'pip install -e ".[serving]"'}
    hosts = manuals.substitutions()["hosts"]
    assert not [word for word in (*tools, *hosts) if word in example.text]


# -------------------------------------------------------------------------------- really started


REAL = {
    "SGLang Diffusion API": ("sglang-api/serve", "/models"),
    "diffgentor": ("diffgentor/serve-concurrent", "/v1/models"),
    "FLUX API": ("flux-api/start-python", "/model-status"),
    "cache-dit serving": ("cache-dit/serve-lora", "/get_model_info"),
}
"""An example of a manual, and what its reader would ask first."""
SMALL = {"prompt": "a cat", "width": 64, "height": 64, "num_inference_steps": 2}


def printed_server(key: str, values: Mapping[str, str], directory: Path) -> list[str]:
    """The first start of an example as arguments of `fakes.server.Server`, without its port."""
    arguments = noted(script_of(key, values), directory)[0][0][1:]
    if "--port" in arguments:
        at = arguments.index("--port")
        del arguments[at : at + 2]
    return arguments


@pytest.mark.parametrize("system", REAL)
@pytest.mark.timeout(600)
def test_a_server_starts_as_printed(system: str, real: dict[str, str], tmp_path: Path) -> None:
    """All its processes, as many ranks as printed; it answers, and makes something."""
    key, route = REAL[system]
    server = Server(tmp_path / "data", *printed_server(key, real, tmp_path))
    try:
        server.wait_ready(400)
        assert server.client.get(route).status_code == 200
        if system.startswith("SGLang"):
            assert server.wait(server.create(**SMALL, num_frames=5))["status"] == "completed"
            return
        made = server.client.post("/generate", json=SMALL, timeout=200)
        assert made.status_code == 200, made.text
        assert base64.b64decode(made.json()["images"][0]).startswith(b"\x89PNG")
    finally:
        server.close()


GENERATED = {
    "sglang-cli/generate-video": ("A curious raccoon.mp4", (64, 48)),
    "sglang-cli/generate-image": (".png", (720, 720)),
    "sglang-cli/generate-edit": (".png", (1024, 1536)),
}
"""Examples: how the name of their file ends, and its size."""
LEFT_OUT = {"NUM_INFERENCE_STEPS": "4", "WIDTH": "64", "HEIGHT": "48", "NUM_FRAMES": "9"}
"""What the video example leaves to the model, small enough for a tiny one; in variables, over which
what is printed wins."""


@pytest.mark.parametrize("key", GENERATED)
@pytest.mark.timeout(600)
def test_generate_as_printed(key: str, real: dict[str, str], tmp_path: Path) -> None:
    """With all ranks, and the size that is printed; a file where it is asked for."""
    ((arguments, _),) = noted(script_of(key, real), tmp_path)
    manual_servers.reader_files(tmp_path)
    left_out = LEFT_OUT if "video" in key else {"NUM_INFERENCE_STEPS": "4"}
    done = subprocess.run(
        [sys.executable, "-m", "safelight", *arguments],
        check=False,
        cwd=tmp_path,
        env=OWN | ON_CPU | {f"SAFELIGHT_{name}": value for name, value in left_out.items()},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "outputs").iterdir()
    ending, size = GENERATED[key]
    assert made.name.endswith(ending)
    if made.suffix == ".mp4":
        stream = probe.video(made)
        assert (stream.width, stream.height) == size
        return
    with Image.open(made) as picture:
        assert picture.size == size
