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


def entry(steps: int, *, planned: int = 1, arrived: float = 0.0, serial: int = 0) -> Entry:
    made = Entry(spec(f"s{serial}.0", steps=steps), serial, arrived)
    made.planned = planned
    return made


def test_joins_when_the_fixed_part_dominates() -> None:
    cost = cost_of(fixed=0.1, slope=0.001)
    assert policy.joins([entry(10), entry(20)], entry(5), cost)


def test_does_not_join_when_a_forward_costs_per_sample() -> None:
    cost = cost_of(fixed=0.0, slope=0.1)
    assert not policy.joins([entry(10)], entry(10), cost)


@pytest.mark.parametrize("left", [1, 5, 50])
def test_where_sharing_saves_little_the_sum_of_finishing_times_decides(left: int) -> None:
    """Against brute force: one batch mate with ten steps left."""
    for fixed in (0.0, 0.005, 0.01):  # at most 8% of two turns
        cost = cost_of(fixed, 0.05)
        one, two = fixed + 0.05, fixed + 0.1
        assert two > (1 - policy.SAVING) * 2 * one
        both = min(10, left)
        together = both * two + max(10, left) * one - both * one + both * two
        mate_first = 10 * one + (10 + left) * one
        newcomer_first = left * one + (10 + left) * one
        expected = together <= min(mate_first, newcomer_first) + 1e-9
        assert policy.joins([entry(10)], entry(left), cost) == expected


def test_where_sharing_saves_much_equal_samples_share() -> None:
    """Alone they would end at 1 and 2; together both end at 1.7, and the next one sooner."""
    assert policy.joins([entry(10)], entry(10), cost_of(0.03, 0.07))


def decode_cost(fixed: float) -> CostModel:
    cost = cost_of(0.01, 0.001)
    for batch in range(1, 10):
        for _ in range(3):
            cost.observe("decode", 80, batch, fixed + 0.005 * batch)
    return cost


def test_a_decode_waits_for_those_that_finish_soon_if_that_pays() -> None:
    finished = [entry(10, planned=11)]
    last, many = entry(10, planned=9), [entry(10, planned=3) for _ in range(8)]
    cheap, dear = decode_cost(fixed=0.0), decode_cost(fixed=0.02)
    assert policy.decode_waits(finished, [last, *many], 0, dear)
    assert not policy.decode_waits(finished, [last, *many], 0, cheap)  # nothing is saved
    assert not policy.decode_waits(finished, many, 0, dear)  # nobody finishes soon
    assert not policy.decode_waits(finished * 12, [last, *many], 0, dear)  # too many would wait
    finished[0].set_apart()
    assert not policy.decode_waits(finished, [last, *many], 0, dear)  # it would not share


def test_age_is_worth_work_and_the_order_does_not_depend_on_the_clock() -> None:
    early, late = entry(30, arrived=0.0), entry(10, arrived=50.0)
    early.work, late.work = 3.0, 1.0
    # 50 s of age are worth 12.5 s of work: the early one goes first, now and always.
    assert policy.urgency(early, 30) < policy.urgency(late, 30)
    late.arrived = 7.0
    assert policy.urgency(early, 30) > policy.urgency(late, 30)


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
