"""Microseconds the scheduler's core needs for one report, with 1,000 samples in its queue.

    python benchmark/scheduler_tick.py

The core has no I/O and no clock, so it runs here in a simulated world (`test/fakes/simulation.py`):
ranks that answer after a predicted time, an output manager that answers at once. Timed is
`core.handle(report)`: account for the plan that ended, choose the next one. When a sample ends
another one is submitted, so the queue stays as long as it is.

Two loads: `mixed` (4 to 20 steps; somebody ends in most plans of a large batch, which is then
formed anew) and `long` (50 steps).
"""

from __future__ import annotations

import random
import sys
import time
from typing import Annotated

import msgspec
import typer

import common
import workload
from common import Spread

sys.path.append(str(common.ROOT / "test"))
from fakes.simulation import STEP_TIMEOUT, World, spec
from safelight.config import SchedulingConfig
from safelight.scheduler.core import Core
from safelight.wire import messages as m

TARGET = 50.0  # microseconds
BATCHES = (1, 8, 16)
LOADS = {"mixed": workload.parse_steps(workload.DEFAULT_STEPS), "long": [50]}
_WARM_UP = 200  # ticks that do not count


class TimedWorld(World):
    """Times the core's reaction to reports; keeps the queue full."""

    def fill(self, queued: int, steps: list[int]) -> None:
        self.ticks: list[float] = []
        self._rng = random.Random(0)
        self._steps = steps
        self._serial = 0
        for _ in range(queued):
            self._add()

    def send(self, message: m.ToScheduler | m.FromRank) -> None:
        begin = time.perf_counter_ns()
        commands = self.core.handle(message, self.now)
        spent = time.perf_counter_ns() - begin
        if isinstance(message, m.Report):
            self.ticks.append(spent / 1000)
        self._apply(commands)

    def replace_ended(self) -> None:
        for _ in range(len(self.ended)):
            self._add()
        self.ended.clear()
        self.told.clear()
        self.log.clear()

    def _add(self) -> None:
        self._serial += 1
        self.submit(spec(f"job-{self._serial}.0", steps=self._rng.choice(self._steps)))


def measure(batch: int, queued: int, ticks: int, steps: list[int]) -> Spread:
    """Microseconds per report."""
    world = TimedWorld(Core(SchedulingConfig(max_batch_size=batch), STEP_TIMEOUT))
    world.hello()
    world.fill(queued, steps)
    while len(world.ticks) < _WARM_UP + ticks:
        world.turn()
        world.replace_ended()
    unfinished = len(world.core.entries)
    assert unfinished == queued, f"{unfinished} samples are left of {queued}"
    return Spread.of(world.ticks[_WARM_UP:])


class Row(msgspec.Struct):
    load: str
    batch: int
    microseconds: Spread


def main(
    queued: Annotated[int, typer.Option(min=1, help="Unfinished samples.")] = 1000,
    ticks: Annotated[int, typer.Option(min=1, help="Reports that count, per row.")] = 4000,
    name: common.Name = "scheduler_tick",
) -> None:
    """Microseconds per tick of the scheduler."""
    rows = [
        Row(load, batch, measure(batch, queued, ticks, steps))
        for load, steps in LOADS.items()
        for batch in BATCHES
    ]
    common.table(
        f"scheduler core, {queued} samples, microseconds per report",
        ("load", "batch", "median", "mean", "p95", "p99", "most"),
        [
            (
                row.load,
                str(row.batch),
                *(f"{getattr(row.microseconds, f):.1f}" for f in ("p50", "mean", "p95", "p99")),
                f"{row.microseconds.most:.0f}",
            )
            for row in rows
        ],
    )
    for what, field in (("median", "p50"), ("mean", "mean")):
        worst = max(getattr(row.microseconds, field) for row in rows)
        common.console.print(f"largest {what}: {common.verdict(worst, TARGET, 'us')}")
    common.save(name, {"queued": queued, "target_us": TARGET, "rows": rows})


if __name__ == "__main__":
    common.run(main)
