"""Small helpers both trainings share: checkpoints, schedules, per-step randomness."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that an interruption leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_if_present(path: Path) -> dict[str, Any] | None:
    """The checkpoint at ``path``, or None when there is none yet."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


class Timer:
    """Training seconds, counted across interruptions; says when to write a checkpoint."""

    def __init__(self, seconds_before: float, interval: float = 100.0) -> None:
        self._start = time.monotonic() - seconds_before
        self._interval = interval
        self._last_save = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def save_is_due(self) -> bool:
        """True once per interval."""
        if time.monotonic() - self._last_save < self._interval:
            return False
        self._last_save = time.monotonic()
        return True


def step_randomness(seed: int, step: int) -> tuple[random.Random, torch.Generator]:
    """The random sources of one step. They depend on the seed and the step alone, so
    a resumed run draws what an uninterrupted one would have drawn."""
    rng = random.Random(f"{seed}/{step}")
    return rng, torch.Generator().manual_seed(rng.getrandbits(62))


def learning_rate_factor(step: int, steps: int, warmup: int, constant: float) -> float:
    """Linear warm-up, constant, then linear decay over the last ``1 - constant``."""
    remaining = (1 - step / steps) / (1 - constant)
    return min(1.0, (step + 1) / warmup) * min(1.0, max(0.01, remaining))


class Log:
    """Prints lines and appends them to a file; averages what is recorded in between."""

    def __init__(self, path: Path, echo: Callable[[str], None] | None = None) -> None:
        self._path = path
        self._echo = echo or (lambda line: print(line, flush=True))
        self._sums: dict[str, tuple[float, int]] = {}

    def record(self, name: str, value: float) -> None:
        """Add a value to the running mean of ``name``."""
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = (total + value, count + 1)

    def flush_means(self, prefix: str) -> None:
        """Write the running means, and start new ones."""
        means = [
            f"{name}={total / count:.4f}" for name, (total, count) in sorted(self._sums.items())
        ]
        self._sums = {}
        self.line(" ".join((prefix, *means)))

    def line(self, text: str) -> None:
        """Write one line."""
        self._echo(text)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")
