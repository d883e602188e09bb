"""What the ranks of one group say: whether they agree, what each of them costs."""

from __future__ import annotations

import random

import pytest

from fakes.simulation import STEP_TIMEOUT, World, groups_told, hand_driven, report, spec
from safelight.scheduler.core import MAX_LOSSES, ToSupervisor
from safelight.scheduler.group import DISAGREEMENT_PATIENCE
from safelight.wire import codec
from safelight.wire import messages as m

STEPS = 4
DECODE = STEPS + 1  # the unit


def of_type(world: World, kind: type) -> list[m.Message]:
    return [message for message in world.told if isinstance(message, kind)]


# ------------------------------------------------------------------------------------ disagreement


@pytest.mark.parametrize(("unit", "op"), [(0, "encode"), (1, "step"), (STEPS, "step")])
def test_a_failure_of_one_rank_alone_has_the_group_started_again(unit: int, op: str) -> None:
    world = World.create(world_size=3)
    world.fail_alone.add(("a.0", unit, 1))
    world.submit(spec("a.0", steps=STEPS), spec("b.0", steps=STEPS))
    world.run_until(lambda: world.hung)
    (hung,) = world.hung
    assert hung.process == "workers-0"
    assert f"({op}): rank 1 failed sample a.0 (x), rank 0, 2 did not" in hung.detail
    assert hung.detail.startswith("ranks disagree about plan ")
    assert of_type(world, m.SampleFailed) == []
    assert all(entry.done == unit for entry in world.core.entries.values())
    world.fail_alone.clear()  # the device has memory again
    world.run()
    assert world.ended == {"a.0": "completed", "b.0": "completed"}
    assert sum(isinstance(plan, m.Encode) for plan in world.log) == 2  # from the beginning


def test_rank_0_alone_may_be_the_one_that_fails() -> None:
    world = World.create(world_size=2)
    world.fail_alone.add(("a.0", 2, 0))
    world.submit(spec("a.0"))
    world.run_until(lambda: world.hung)
    assert "rank 0 failed sample a.0 (x), rank 1 did not" in world.hung[0].detail
    assert of_type(world, m.SampleFailed) == []


def test_a_sample_that_always_divides_the_ranks_is_failed() -> None:
    world = World.create(world_size=2)
    world.fail_alone.add(("a.0", 2, 1))
    world.submit(spec("a.0"))
    world.run()
    assert world.ended == {"a.0": "failed"}
    assert len(world.hung) == MAX_LOSSES


@pytest.mark.parametrize("unit", [0, 2, DECODE])
def test_ranks_that_fail_alike_agree(unit: int) -> None:
    world, rng = World.create(world_size=3), random.Random(unit)
    world.delay = lambda: rng.uniform(0, 0.1)
    world.fail.add(("a.0", unit))
    world.submit(spec("a.0", steps=STEPS), spec("b.0", steps=STEPS))
    world.run()
    assert world.hung == []
    assert world.ended == {"a.0": "failed", "b.0": "completed"}


@pytest.mark.parametrize(("rank", "how"), [(0, "failed"), (1, "completed")])
def test_of_a_decode_rank_0_alone_is_asked(rank: int, how: str) -> None:
    """It may be the only one that decodes."""
    world = World.create(world_size=2)
    world.fail_alone.add(("a.0", DECODE, rank))
    world.submit(spec("a.0", steps=STEPS))
    world.run()
    assert world.hung == []
    assert world.ended == {"a.0": how}


def test_different_reasons_are_a_disagreement_different_words_are_not() -> None:
    world, seq = hand_driven()
    report(world, 1, seq, a="out_of_memory")
    report(world, 0, seq, a="generation_failed")
    (hung,) = world.hung
    assert "rank 0 failed sample a.0 (generation_failed)" in hung.detail
    assert "rank 1 failed sample a.0 (out_of_memory)" in hung.detail
    world, seq = hand_driven()
    report(world, 1, seq, b="x", a="x")
    report(world, 0, seq, a="x", b="x")
    assert world.hung == []
    assert world.ended == {"a.0": "failed", "b.0": "failed"}


def test_a_group_that_disagrees_gets_nothing_more_and_is_believed_nothing() -> None:
    world, seq = hand_driven()
    world.told.clear()
    report(world, 1, seq, a="x")
    report(world, 0, seq)
    ((ready, detail),) = groups_told(world)
    assert not ready
    assert "ranks disagree" in detail
    before = len(world.ranks[0][0].plans)
    for rank in (0, 1):
        report(world, rank, seq + 1)
    world.submit(spec("c.0"))
    assert len(world.ranks[0][0].plans) == before  # the world asserts it too
    assert [entry.done for entry in world.core.entries.values()] == [0, 0, 0]
    assert len(world.hung) == 1
    world.told.clear()
    world.send(m.Attach())
    assert groups_told(world) == [(False, detail)]
    world.run(until=world.now + world.restart)
    world.run()
    assert set(world.ended.values()) == {"completed"}


def test_it_is_said_again_if_nothing_comes_of_it() -> None:
    world, seq = hand_driven()
    report(world, 1, seq, a="x")
    report(world, 0, seq)
    assert world.core.deadline() == STEP_TIMEOUT
    commands = world.core.tick(STEP_TIMEOUT)
    assert [c.message for c in commands] == world.hung
    assert world.core.deadline() == 2 * STEP_TIMEOUT


def test_an_answer_that_comes_after_the_group_was_given_up_moves_nothing() -> None:
    world, seq = hand_driven()
    report(world, 0, seq)
    world.core.tick(STEP_TIMEOUT)
    report(world, 1, seq)
    assert [entry.done for entry in world.core.entries.values()] == [0, 0]


def test_the_others_have_little_time_once_a_rank_has_failed_a_sample() -> None:
    """Those that did not fail wait for that rank in a collective."""
    world, seq = hand_driven(3)
    world.now = 5.0
    report(world, 1, seq, a="out_of_memory")
    assert world.core.deadline() == 5.0 + DISAGREEMENT_PATIENCE
    commands = world.core.tick(5.0 + DISAGREEMENT_PATIENCE)
    (hung,) = [c.message for c in commands if isinstance(c, ToSupervisor)]
    assert isinstance(hung, m.Hung)
    assert hung.process == "workers-0"
    assert f"ranks disagree about plan {seq} (encode): rank 1 failed sample a.0" in hung.detail
    assert "no answer from rank 0, 2" in hung.detail


def test_that_time_begins_when_the_others_have_come_to_the_plan() -> None:
    world, seq = hand_driven()
    report(world, 1, seq)
    report(world, 1, seq + 1, a="x")  # ahead of rank 0
    assert world.core.deadline() == STEP_TIMEOUT
    world.now = 100.0
    report(world, 0, seq)
    assert world.core.deadline() == 100.0 + DISAGREEMENT_PATIENCE


def test_a_failed_decode_gives_the_others_all_the_time_they_need() -> None:
    world, rng = World.create(world_size=2), random.Random(0)
    world.fail_alone.add(("a.0", DECODE, 1))
    world.submit(spec("a.0", steps=STEPS))
    world.run_until(lambda: world.units["a.0"] == DECODE)
    world.delay = lambda: rng.uniform(2, 3) * DISAGREEMENT_PATIENCE
    world.run()
    assert world.hung == []
    assert world.ended == {"a.0": "completed"}


def test_a_group_that_disagrees_concerns_no_other_group() -> None:
    world = World.create(world_size=2, groups=2, max_batch_size=1)
    world.fail_alone.add(("a.1", 1, 1))
    world.submit(*(spec(f"a.{i}") for i in range(6)))
    world.run()
    assert world.ended.pop("a.1") == "failed"
    assert set(world.ended.values()) == {"completed"}
    assert len(world.ended) == 5
    assert len(world.hung) == MAX_LOSSES


# ----------------------------------------------------------------------------------------- figures


def test_a_plan_tells_what_it_cost_every_rank_in_order() -> None:
    world = World.create(world_size=3)
    delays = iter([0.3, 0.1, 0.2] * 100)  # rank 0 is asked first, and answers last
    world.delay = lambda: next(delays)
    world.submit(spec("a.0", steps=1))
    world.run()
    done = of_type(world, m.PlanDone)
    assert [plan.op for plan in done] == ["encode", "step", "decode"]
    for plan in done:
        assert [(cost.rank, cost.traffic, cost.peak_memory) for cost in plan.ranks] == [
            (rank, {"ulysses.all_to_all": 10 + rank}, 2000 + rank) for rank in range(3)
        ]
    first = done[0].ranks
    assert [cost.seconds for cost in first] == pytest.approx([0.302, 0.102, 0.202])
    assert done[0].finished - done[0].started == pytest.approx(0.302)


def test_a_group_that_is_whole_tells_of_its_ranks() -> None:
    world = World.create(world_size=2, groups=0)
    world.join(0, 1)
    assert of_type(world, m.GroupStatus) == []
    world.send(m.Attach())
    (partial,) = of_type(world, m.GroupStatus)
    assert (partial.ready, [info.rank for info in partial.ranks]) == (False, [1])
    world.told.clear()
    world.join(0, 0)
    (whole,) = of_type(world, m.GroupStatus)
    assert whole == m.GroupStatus(
        group=0,
        ready=True,
        detail="serving",
        ranks=tuple(
            m.RankInfo(
                rank=rank,
                pid=1 + rank,
                device=f"cpu:{rank}",
                load_seconds=0.5,
                peak_memory=1000,
                weights={"transformer": 100 + rank},
            )
            for rank in range(2)
        ),
    )


def test_a_manager_that_attaches_hears_the_newest_peaks() -> None:
    world = World.create(world_size=2)
    world.submit(spec("a.0"))
    world.run()
    world.told.clear()
    world.send(m.Attach())
    (status,) = of_type(world, m.GroupStatus)
    assert [info.peak_memory for info in status.ranks] == [2000, 2001]


def test_figures_of_eight_ranks_are_small() -> None:
    traffic = {
        f"{a}.{c}": 2**40 for a in ("cfg", "ring", "ulysses") for c in ("all_to_all", "send")
    }
    costs = tuple(
        m.RankCost(rank=rank, seconds=1.0, traffic=traffic, peak_memory=2**37) for rank in range(8)
    )
    done = m.PlanDone(group=0, op="step", samples=(), started=0.0, finished=1.0, ranks=costs)
    weights = {f"component_{i}": 2**36 for i in range(6)}
    infos = tuple(m.RankInfo(rank=r, pid=2**22, device="cuda:0", weights=weights) for r in range(8))
    status = m.GroupStatus(group=0, ready=True, detail="serving", ranks=infos)
    assert max(len(codec.encode(message)) for message in (done, status)) < 4096
