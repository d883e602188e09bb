"""What the scheduler does when a group is lost, whole or in part: who is waited for, who pays."""

from __future__ import annotations

from collections import deque

import msgspec
import pytest

from fakes.simulation import STEP_TIMEOUT, World, groups_told, hand_driven, report, spec
from safelight.config import SchedulingConfig
from safelight.scheduler.batch import Batcher
from safelight.scheduler.core import Core
from safelight.scheduler.cost import CostModel
from safelight.scheduler.dispatch import Draft
from safelight.scheduler.group import HELLO_PATIENCE, Group
from safelight.scheduler.table import Entry
from safelight.wire import messages as m

STEPS = 4
DECODE = STEPS + 1  # the unit


# ------------------------------------------------------------------------------------- half a group


@pytest.mark.parametrize("timeout", [HELLO_PATIENCE / 2, HELLO_PATIENCE * 3])
def test_a_group_of_which_ranks_say_no_hello_is_started_again(timeout: float) -> None:
    world = World(Core(SchedulingConfig(), timeout), world_size=4)
    world.now = 7.0
    world.join(0, 2)
    world.now = 20.0
    world.join(0, 0)
    due = 7.0 + max(timeout, HELLO_PATIENCE)  # from the first
    assert world.core.deadline() == due
    assert world.core.tick(due - 1.0) == []
    world.told.clear()
    world.run_until(lambda: world.hung)
    assert world.now == due
    text = "rank 1, 3 did not say hello, rank 0, 2 did"
    assert world.hung == [m.Hung(process="workers-0", detail=text)]
    assert groups_told(world) == [(False, text)]
    assert world.core.deadline() == due + max(timeout, HELLO_PATIENCE)
    world.submit(spec("a.0"))
    world.run()
    assert world.ended == {"a.0": "completed"}
    assert len(world.hung) == 1


def test_a_rank_that_says_hello_too_late_does_not_save_its_group_and_it_is_said_again() -> None:
    world = World.create(world_size=2, groups=0)
    world.join(0, 0)
    (first, *_) = world.core.tick(STEP_TIMEOUT)
    world.join(0, 1)
    world.submit(spec("a.0"))
    assert world.ranks[0][0].plans == deque()  # it is about to be ended
    assert world.core.deadline() == 2 * STEP_TIMEOUT
    assert world.core.tick(2 * STEP_TIMEOUT) == [first]


def test_a_group_that_is_whole_and_idle_is_not_waited_for() -> None:
    world = World.create(world_size=2, groups=0)
    world.join(0, 0)
    assert world.core.deadline() == STEP_TIMEOUT
    world.join(0, 1)
    assert world.core.deadline() is None


# ---------------------------------------------------------------------------------- out of memory


def failed(world: World) -> list[tuple[str, str, str]]:
    return [(t.sample, t.code, t.message) for t in world.told if isinstance(t, m.SampleFailed)]


def deaths(world: World) -> int:
    return groups_told(world).count((False, "its ranks were lost"))


@pytest.mark.parametrize(("unit", "rank"), [(0, 0), (0, 1), (2, 0), (2, 1), (DECODE, 0)])
def test_a_sample_for_which_one_rank_has_no_memory_costs_one_restart(unit: int, rank: int) -> None:
    """Rank 0 is asked first: it has answered when rank 1 fails."""
    world = World.create(world_size=2, max_batch_size=1)
    world.exhaust.add(("a.0", unit, rank))
    world.submit(spec("a.0", steps=STEPS), spec("b.0", steps=STEPS))
    world.run_until(lambda: deaths(world))
    assert failed(world) == [("a.0", "out_of_memory", f"no memory on rank {rank}")]
    assert all(entry.losses == 0 for entry in world.core.entries.values())
    world.run()
    assert world.ended == {"a.0": "failed", "b.0": "completed"}
    assert deaths(world) == 1


def test_who_shared_a_plan_with_the_one_that_is_named_is_not_charged() -> None:
    world, seq = hand_driven()
    world.write = False
    report(world, 1, seq, a="out_of_memory")
    assert failed(world) == []  # the others may say the same
    world.down()
    assert failed(world) == [("a.0", "out_of_memory", "on rank 1")]
    (mate,) = world.core.entries.values()
    assert (mate.spec.id, mate.losses) == ("b.0", 0)
    assert mate.batch_key == mate.spec.batch_key


def test_of_a_batch_that_had_no_memory_each_is_tried_alone() -> None:
    """The one that is too large fails at its next try; the others never meet it again."""
    world = World.create(world_size=2)
    world.exhaust.add(("b.0", 2, 1))
    names = ["a.0", "b.0", "c.0"]
    world.submit(*(spec(name, steps=STEPS) for name in names))
    world.run_until(lambda: deaths(world))
    assert [world.core.entries[name].losses for name in names] == [1, 1, 1]
    assert {len(World.names(plan)) for plan in world.log} == {3}
    world.log.clear()
    world.submit(spec("d.0", steps=STEPS), spec("e.0", steps=STEPS))  # of the same key
    world.run()
    assert [one[:2] for one in failed(world)] == [("b.0", "out_of_memory")]
    assert len(world.ended) == 5
    for plan in world.log:
        assert len(World.names(plan)) <= 1 or set(World.names(plan)) == {"d.0", "e.0"}
    assert any(len(plan.samples) == 2 for plan in world.steps)
    assert deaths(world) == 2


def test_a_rank_that_is_ahead_is_believed_about_its_plan_not_about_the_one_before() -> None:
    world = World.create(world_size=2, max_batch_size=1)
    world.hang |= {(0, 0), (0, 1)}
    world.submit(spec("a.0"))
    first, second = (pending.plan.seq for pending in world.core.groups[0].pending)
    world.submit(spec("b.0", steps=1, priority=1))
    report(world, 0, first)
    report(world, 1, first)  # the step of `a` runs, the encode of `b` is next
    assert [p.op for p in world.core.groups[0].pending] == ["step", "encode"]
    report(world, 1, second)
    report(world, 1, second + 1, b="out_of_memory")
    world.down()
    assert failed(world) == [("b.0", "out_of_memory", "on rank 1")]
    assert world.core.entries["a.0"].losses == 0


def test_ranks_that_say_hello_anew_lost_what_had_no_memory_too() -> None:
    world, seq = hand_driven()
    report(world, 1, seq, a="out_of_memory")
    (rank_0, _) = world.core.groups[0].hellos.values()
    world.send(msgspec.structs.replace(rank_0, pid=77))
    assert failed(world) == [("a.0", "out_of_memory", "on rank 1")]


def test_that_rank_0_has_no_memory_to_decode_alone_is_no_matter_of_the_group() -> None:
    world = World.create(world_size=2)
    world.hang |= {(0, 0), (0, 1)}
    world.submit(spec("a.0", steps=1), spec("b.0", steps=1))
    seq = world.core.groups[0].pending[0].plan.seq
    for rank in (0, 1):
        report(world, rank, seq)
        report(world, rank, seq + 1)
    assert world.core.groups[0].pending[0].op == "decode"
    report(world, 0, seq + 2, a="out_of_memory")
    report(world, 1, seq + 2)
    assert world.hung == []
    assert failed(world) == [("a.0", "out_of_memory", "on rank 0")]
    assert world.ended == {"a.0": "failed", "b.0": "completed"}


# -------------------------------------------------------------------------------------- set apart


def a_batcher() -> tuple[Batcher, list[Entry]]:
    """With three samples of one key, of which the second was set apart."""
    batcher = Batcher(SchedulingConfig(), CostModel())
    entries = [Entry(spec(f"s.{i}"), i, 0.0) for i in range(3)]
    entries[1].set_apart()
    return batcher, entries


def test_who_was_set_apart_is_decoded_alone() -> None:
    batcher, (one, apart, other) = a_batcher()
    group = Group(0, 1, finished=[one, apart, other])
    assert batcher.choose([group], [group], 0.0) == [(group, [one, other])]
    assert batcher.choose([group], [group], 0.0) == [(group, [apart])]


def test_who_was_set_apart_takes_no_one_into_its_batch_and_joins_none() -> None:
    _, (one, apart, other) = a_batcher()
    group = Group(0, 1, running=[apart, one])
    draft = Draft(group, 2, 9, 16, CostModel())
    assert draft.led_by(other) == [other, one]
    assert draft.led_by(apart) == [apart]
    draft.batch = [apart]
    assert draft.offer(other) is None
    draft.batch = [one]
    assert draft.offer(other) == [one, other]
    assert draft.offer(apart) is None
