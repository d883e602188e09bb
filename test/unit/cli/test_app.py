"""The command as a user meets it: exit statuses, one-line errors, start-up cost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fakes.engine_peer import CARD
from safelight import __version__
from safelight.cli import app, serve
from safelight.cli.display import Startup
from safelight.config import build

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("SAFELIGHT_")}


def safelight(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "safelight", *arguments],
        env={**ENVIRONMENT, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_version() -> None:
    done = safelight("version")
    assert (done.returncode, done.stdout.strip()) == (0, __version__)


def test_help_without_a_command() -> None:
    done = safelight()
    assert done.returncode == 0
    assert "generate" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--prot", "1"], "--port"),
        (["serve", "--port", "x"], "--port: expected `int`"),
        (["serve", "--port", "65536"], "--port: expected `int` <= 65535"),
        (["serve", "--device", "tpu"], "--device: invalid enum value 'tpu'"),
        (["serve", "--config", "/nowhere.yaml"], "Cannot read the config file /nowhere.yaml"),
        (["serve", "--model-path", "/nowhere"], "is not a diffusers pipeline"),
        (["serve", "--num-gpus", "3", "--ulysses-degree", "2"], "does not divide 3"),
        (["serve", "--ulysses-degree", "3"], "4 attention heads"),
        (["serve", "--ulysses-degree", "8"], "--num-gpus 8 --ulysses-degree 4 --ring-degree 2"),
        (["generate", "-p", "x", "--sp-size", "2", "--ring-degree", "4"], "does not divide 2"),
        (["serve", "--num-gpus", "4", "--tp-size", "3"], "--tp-size 3"),
        (["serve", "--tp-size", "2", "--text-encoder-cpu-offload"], "Give one of them"),
        (["serve", "--gpu-ids", "0,x"], "'x' is not a device number"),
        (["serve", "-g", "0,x"], "'x' is not a device number"),
        (["serve", "--compile", "--num-gpus", "2"], "does not work where ranks share a sequence"),
        (["serve", "--serve-num-frames", "4"], "The default 'num_frames' is 4"),
        (["batch"], "There is no input"),
        (["batch", "--input", "/nowhere.csv"], "cannot read /nowhere.csv"),
        (["serve", "--gpu-ids", "0", "--device", "cpu"], "contradicts --device cpu"),
        (["generate", "-p", "x", "--vae-parallel", "on"], "only one here"),
        (
            ["serve", "--device", "cpu", "--sequence-parallel-backend", "xfuser"],
            "--sequence-parallel-backend xfuser needs CUDA",
        ),
        (
            [
                *("generate", "-p", "x", "--ulysses-degree", "2", "--ring-degree", "2"),
                *("--width", "48", "--height", "48", "--num-frames", "1"),
            ],
            "Nearest sizes that fit: 48x64 or 64x48 or 32x32",
        ),
        (["sevre"], "serve"),
        (["generate"], "There is no prompt"),
        (["generate", "-p", "x", "--n", "11"], "'n' is 11"),
        (["generate", "-p", "x", "--width", "65"], "Nearest: 64"),
        (["generate", "-p", "x", "--output-file-name", "a.gif"], ".mp4, .png"),
        (["generate", "-p", "x", "--output-file-name", "a.png", "--num-frames", "9"], ".mp4"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = safelight(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert message in done.stderr


def test_a_misspelt_variable_is_warned_about() -> None:
    done = safelight("generate", SAFELIGHT_DEVISE="cpu")
    assert "Did you mean 'SAFELIGHT_DEVICE'?" in done.stderr


def test_a_file_key_that_is_misspelt_is_status_2(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("max-batch-sise: 3")
    done = safelight("serve", "--config", str(file))
    assert done.returncode == 2
    assert "Did you mean 'max_batch_size'?" in done.stderr


def test_errors_that_are_no_usage_errors_have_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safelight.errors import StartupFailed

    def breaks(config: object) -> int:
        raise StartupFailed("The worker did not come up.")

    monkeypatch.setattr(serve, "serve", breaks)
    assert app.run(["serve"]) == 1
    assert capsys.readouterr().err == "safelight: The worker did not come up.\n"


def test_the_example_is_a_request_to_paste() -> None:
    text = serve.example("http://127.0.0.1:3", CARD, with_key=False)
    assert text.startswith("curl http://127.0.0.1:3/v1/videos")
    assert "Authorization" not in text
    assert "Authorization: Bearer" in serve.example("http://h", CARD, with_key=True)


@pytest.mark.parametrize("width", [40, 200])
def test_the_announcement_can_be_copied_and_keeps_the_key(width: int) -> None:
    console = Console(width=width, highlight=False, markup=False)
    announcer = serve.Announcer(console, Startup(console), build({"api_key": "hush"}), [CARD])
    with console.capture() as shown:
        announcer("workers-0", "ready: cpu")
        announcer("entrypoint", "ready: http://127.0.0.1:3")
    text = shown.get()
    assert serve.example("http://127.0.0.1:3", CARD, with_key=True) in text
    assert text.count("address") == 1
    assert "hush" not in text
