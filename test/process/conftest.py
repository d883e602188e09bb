"""Real engines and servers, shared by the tests of a session because a start takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from safelight.engine import Engine, build_config
from safelight.wire.messages import PlanDone


@dataclass
class RunningEngine:
    """A real engine of the built-in model, and every plan it executed."""

    engine: Engine
    plans: list[PlanDone] = field(default_factory=list)

    def plans_of(self, op: str) -> list[PlanDone]:
        return [plan for plan in self.plans if plan.op == op]


@pytest.fixture(scope="session")
def running() -> Iterator[RunningEngine]:
    plans: list[PlanDone] = []
    config = build_config(device="cpu", cpu_threads=1, log_level="warning")
    with Engine(config, on_plan=plans.append) as engine:
        yield RunningEngine(engine, plans)
