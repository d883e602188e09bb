"""Every benchmark, one after another, with modest sizes: what `make bench` runs.

    python benchmark/all.py

Takes some minutes on two cores. The exit status is not 0 if one of them could not be taken; a
missed target is a result, not a failure.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer

import common

RUNS: tuple[tuple[str, ...], ...] = (
    ("scheduler_tick.py",),
    ("idle.py",),
    ("ranks.py", "--rounds", "3"),
    ("single.py",),
    ("compare.py", "--jobs", "128"),
    ("compare.py", "--jobs", "128", "--writer", "ffmpeg", "--name", "compare_tuned_loop"),
    ("compare.py", "--jobs", "96", "--images", "0.5", "--name", "compare_images"),
    ("serving.py", "--start", "--rate", "4", "--jobs", "96", "--images", "0.25"),
)


def main(device: common.Device = "auto") -> None:
    """Every benchmark, with modest sizes."""
    failed = []
    for script, *options in RUNS:
        command = " ".join((script, *options))
        common.console.rule(command)
        if script != "scheduler_tick.py":
            options += ["--device", device]
        if _run([str(Path(__file__).with_name(script)), *options]) != 0:
            failed.append(command)
    for command in failed:
        common.console.print(f"failed: {command}")
    if failed:
        raise typer.Exit(1)


def _run(arguments: list[str]) -> int:
    process = subprocess.Popen([sys.executable, *arguments])
    try:
        return process.wait()
    finally:
        # SIGTERM lets the benchmark end what it started.
        common.end(process, 60.0)


if __name__ == "__main__":
    common.run(main)
