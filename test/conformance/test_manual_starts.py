"""The manuals' examples that start something: `serve` and `generate` as printed.

All run in bash, where a function stands for the tool and notes what it was given; the real command
line then takes that, in this process, up to the start: configuration, files and layout are checked,
no rank is started. Really started, with all processes, are one `serve` a manual and the `generate`
examples, on tiny checkpoints and with as many ranks as printed, on the CPU.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from PIL import Image

from fakes import command_lines, manual_servers, manuals
from fakes.cases import Checkpoints
from fakes.manuals import Example
from fakes.server import Server, free_port

STARTS = {k: e for k, e in manuals.examples().items() if e.kind in ("start", "generate")}
ELSEWHERE = [key for key, e in manuals.examples().items() if e.kind == "elsewhere"]
CONFIGS = [key for key, e in manuals.examples().items() if e.kind == "config"]
FOREIGN = ("nvidia-smi", "nvcc", "curl", "python", "sudo", "lsof")
"""Programs of the machine, which examples call beside the tool's."""

NOTE = r"""
set -euo pipefail
safelight() {
  { printf '%s\0' "$@"; env -0 | grep -z '^SAFELIGHT_' || true; printf '\n'; } >> "$NOTES"
}
"""
OWN = {name: value for name, value in os.environ.items() if not name.startswith("SAFELIGHT_")}


@pytest.fixture(scope="module")
def values(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for `{...}`: the tiny checkpoints, the adapters."""
    root = tmp_path_factory.mktemp("loras")
    manual_servers.write_adapters(root)
    return {**command_lines.models(checkpoints), "loras": str(root)}


def script_of(key: str, values: Mapping[str, str]) -> str:
    return manuals.printed(manuals.examples()[key].text, ("tools", "models"), values)


def noted(script: str, directory: Path) -> list[tuple[list[str], dict[str, str]]]:
    """Run it in bash: the arguments and `SAFELIGHT_*` variables of every call of the tool."""
    notes = directory / "notes"
    notes.touch()
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
    return [split(line) for line in notes.read_text().split("\0\n") if line]


def split(line: str) -> tuple[list[str], dict[str, str]]:
    parts = line.split("\0")
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
    status, started = command_lines.run(arguments)
    out = capsys.readouterr()
    if words := expected.get("refused"):
        assert (status, started) == (2, [])
        assert words in out.err
    elif words := expected.get("says"):
        assert status == 0 and all(word in out.out for word in words)
    else:
        assert status == 0, out.err
        found = {path: started[0].setting(path) for path in expected}
        assert found == expected


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
    "SGLang Diffusion CLI": ("sglang-cli/serve-video", "/v1/models"),
    "diffgentor": ("diffgentor/serve-concurrent", "/v1/models"),
    "FLUX API": ("flux-api/testing-multi-gpu", "/model-status"),
    "cache-dit serving": ("cache-dit/serve-lora", "/get_model_info"),
}


def printed_server(key: str, values: Mapping[str, str], directory: Path) -> list[str]:
    """The first start of an example as arguments of `fakes.server.Server`, without its port."""
    arguments = noted(script_of(key, values), directory)[0][0][1:]
    if "--port" in arguments:
        at = arguments.index("--port")
        del arguments[at : at + 2]
    return [word for word in arguments if word not in ("--cache",)]


@pytest.mark.parametrize("system", REAL)
@pytest.mark.timeout(600)
def test_a_server_starts_as_printed(system: str, values: dict[str, str], tmp_path: Path) -> None:
    """All its processes, as many ranks as printed; it answers."""
    key, route = REAL[system]
    server = Server(tmp_path / "data", *printed_server(key, values, tmp_path))
    try:
        server.wait_ready(400)
        assert server.client.get(route).status_code == 200
    finally:
        server.close()
