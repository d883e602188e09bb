"""The figures of `safelight bench` follow from what the ranks report."""

from __future__ import annotations

from typing import Any, cast

import pytest

from safelight.cli.bench import RankFigures, rank_figures, through_window
from safelight.wire.messages import GroupStatus, PlanDone, RankCost, RankInfo


def plan(op: str, group: int, *costs: RankCost) -> PlanDone:
    return PlanDone(group=group, op=op, samples=("a",), started=0.0, finished=1.0, ranks=costs)


def cost(rank: int, seconds: float, sent: int, peak: int) -> RankCost:
    traffic = {"ulysses.all_to_all": sent}
    return RankCost(rank=rank, seconds=seconds, traffic=traffic, peak_memory=peak)


def test_figures_are_by_rank_and_steps_apart_from_the_rest() -> None:
    infos = tuple(
        RankInfo(
            rank=rank,
            pid=1,
            device="cpu",
            load_seconds=2.0,
            peak_memory=10,
            weights={"vae": 5},
        )
        for rank in (0, 1)
    )
    group = GroupStatus(group=1, ready=True, detail="", ranks=infos)
    plans = [
        plan("encode", 1, cost(0, 9.0, 7, 10), cost(1, 9.0, 0, 11)),
        plan("step", 1, cost(0, 0.1, 100, 10), cost(1, 0.2, 60, 12)),
        plan("step", 1, cost(0, 0.3, 200, 10), cost(1, 0.2, 60, 11)),
        plan("step", 1, cost(0, 0.2, 300, 10), cost(1, 0.2, 60, 11)),
        plan("step", 0, cost(0, 5.0, 900, 99)),
    ]
    first, second = rank_figures(plans, [group])
    assert first == RankFigures(
        group=1,
        rank=0,
        device="cpu",
        load_seconds=2.0,
        weights={"vae": 5},
        peak_memory=10,
        steps=3,
        step_seconds=0.2,
        bytes_per_step={"ulysses.all_to_all": 200.0},
        bytes_elsewhere={"ulysses.all_to_all": 7},
    )
    assert second.peak_memory == 12
    assert second.bytes_per_step == {"ulysses.all_to_all": 60.0}


@pytest.mark.parametrize(("requests", "window"), [(20, 8), (3, 8), (8, 8), (5, 1)])
def test_no_more_are_unfinished_than_may_queue(requests: int, window: int) -> None:
    submitted: list[int] = []
    finished: list[int] = []
    most = 0

    class Job:
        def __init__(self, number: int) -> None:
            nonlocal most
            submitted.append(number)
            self.number = number
            most = max(most, len(submitted) - len(finished))

        def wait(self) -> None:
            finished.append(self.number)

    through_window(cast(Any, Job), requests, window)
    assert submitted == sorted(finished) == list(range(requests))
    assert most == min(requests, window)
