"""Precedence and sharing."""

from __future__ import annotations

import pytest

from fakes.simulation import spec
from safelight.scheduler import policy
from safelight.scheduler.cost import CostModel
from safelight.scheduler.table import Entry, Queue


def cost_of(fixed: float, slope: float) -> CostModel:
    cost = CostModel()
    for batch in range(1, 10):
        for _ in range(3):
            cost.observe("step", 80, batch, fixed + slope * batch)
    return cost


def entry(steps: int, *, planned: int = 1, since: float = 0.0, serial: int = 0) -> Entry:
    made = Entry(spec(f"s{serial}.0", steps=steps), serial, since)
    made.planned = planned
    return made


def test_joins_when_the_fixed_part_dominates() -> None:
    cost = cost_of(fixed=0.1, slope=0.001)
    assert policy.joins([entry(10), entry(20)], entry(5), cost)


def test_does_not_join_when_a_forward_costs_per_sample() -> None:
    cost = cost_of(fixed=0.0, slope=0.1)
    assert not policy.joins([entry(10)], entry(10), cost)


@pytest.mark.parametrize("left", [1, 5, 50])
def test_the_rule_is_the_sum_of_finishing_times(left: int) -> None:
    """Against brute force: one batch mate with ten steps left."""
    for fixed in (0.0, 0.02, 0.1):
        cost = cost_of(fixed, 0.05)
        one, two = fixed + 0.05, fixed + 0.1
        both = min(10, left)
        together = both * two + max(10, left) * one - both * one + both * two
        mate_first = 10 * one + (10 + left) * one
        newcomer_first = left * one + (10 + left) * one
        expected = together <= min(mate_first, newcomer_first) + 1e-9
        assert policy.joins([entry(10)], entry(left), cost) == expected


def test_waiting_earns_and_running_spends() -> None:
    made = entry(10)
    made.work = 2.0
    policy.earn(made, 8.0)
    assert made.credit == pytest.approx(8.0 * policy.AGEING)
    before = policy.running_urgency(made, 30.0)
    policy.spend(made, 1.0)
    assert policy.running_urgency(made, 30.0) == pytest.approx(before)  # credit pays for progress
    policy.spend(made, 10.0)
    assert (made.work, made.credit) == (0.0, 0.0)


def test_the_order_of_those_who_wait_does_not_depend_on_the_clock() -> None:
    early, late = entry(30, since=0.0), entry(10, since=50.0)
    for made, work in ((early, 3.0), (late, 1.0)):
        made.work = work
    # 50 s of waiting are worth 12.5 s of work: the early one goes first, now and always.
    assert policy.waiting_urgency(early, 30) < policy.waiting_urgency(late, 30)


def test_the_queue_is_sorted_overall_and_by_key() -> None:
    queue = Queue()
    made = [Entry(spec(f"s{i}.0", tokens=[80, 16][i % 2]), i, 0.0) for i in range(6)]
    for i, one in enumerate(made):
        one.urgency = float(10 - i)
        queue.add(one)
    assert queue.first() is made[5]
    assert queue.first_of("key-80", 2) == [made[4], made[2]]
    assert queue.position(made[0]) == 5
    queue.remove(made[5])
    assert made[5] not in queue
    assert queue.first() is made[4]
    assert len(queue) == 5
    assert queue.first_of("nothing", 3) == []
