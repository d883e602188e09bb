"""What every benchmark needs: statistics, the setup, facts about the machine, results on disk."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from safelight.config import EngineConfig
from safelight.engine import build_config

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmark" / "results"
_PACKAGES = ("safelight", "torch", "diffusers", "transformers", "pyzmq", "uvicorn", "httpx2")

console = Console(highlight=False)

# Options that several benchmarks have, declared once.
ModelPath = Annotated[str, typer.Option("--model-path", help="As for `safelight serve`.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; the same on both sides.")]
Threads = Annotated[
    int, typer.Option("--cpu-threads", help="Torch threads; 0 is every core. Same on both sides.")
]
ServerThreads = Annotated[
    int | None, typer.Option("--server-cpu-threads", help="The server's, if they shall differ.")
]
Name = Annotated[str, typer.Option("--name", help="The result is results/<name>.json.")]
Seed = Annotated[int, typer.Option(help="Fixes prompts, seeds, step counts and arrivals.")]


def run(main: Callable[..., None]) -> None:
    """Run a benchmark's `main`; SIGTERM, like Ctrl-C, unwinds it, so that `finally` runs."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    typer.run(main)


def engine_config(model_path: str, device: str, threads: int) -> EngineConfig:
    """What both sides are configured with."""
    return build_config(
        model_path=model_path, device=device, cpu_threads=threads, log_level="warning"
    )


# ------------------------------------------------------------------------------------ statistics


class Spread(msgspec.Struct, frozen=True):
    """A distribution in a few numbers, in the unit of its values."""

    count: int
    mean: float
    least: float
    p50: float
    p95: float
    p99: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Percentiles are interpolated linearly. Raises `ValueError` without values."""
        if not values:
            raise ValueError("there are no values")
        p50, p95, p99 = (float(p) for p in np.percentile(values, (50, 95, 99)))
        return cls(len(values), sum(values) / len(values), min(values), p50, p95, p99, max(values))


def median(values: Sequence[float]) -> float:
    return Spread.of(values).p50


# --------------------------------------------------------------------------------------- results


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write results/<name>.json: `figures`, and what they were measured with."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        **figures,
    }
    data = msgspec.json.encode(msgspec.to_builtins(document))
    path.write_bytes(msgspec.json.format(data, indent=2) + b"\n")
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    console.print(f"written: {shown}")
    return path


def machine() -> dict[str, Any]:
    """The hardware, and how busy it was with other things."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _gpus(),
        "system": platform.platform(),
        "load_average_1min": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    """The name and the numbers that tell CPUs apart whose name does not (virtual machines)."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name", platform.machine())
    numbers = [f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return _output(query).splitlines()


def versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    git = ["git", "-C", str(ROOT)]
    commit = _output([*git, "rev-parse", "HEAD"]) or "unknown"
    changed = bool(_output([*git, "status", "--porcelain", "--", "python"]))
    return {
        "python": platform.python_version(),
        **packages,
        "commit": commit + (" with uncommitted changes" if changed else ""),
    }


def _output(command: Sequence[str]) -> str:
    """What a command prints; empty if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


# ---------------------------------------------------------------------------------------- tables


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are numbers."""
    console.print(f"\n[bold]{title}[/bold]")  # a table's own title wraps at its width
    shown = Table()
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def verdict(value: float, target: float, unit: str) -> str:
    """`value` beside the target it should not exceed."""
    word = "met" if value <= target else "MISSED"
    return f"{value:.3g} {unit} (target: at most {target:g} {unit}, {word})"


def end(process: subprocess.Popen[Any], grace: float) -> None:
    """End a process and everything below it: SIGTERM, and SIGKILL after `grace` seconds."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            for member in family:
                if member.is_running():
                    member.kill()
            process.kill()
    process.wait()
