"""Many worker groups: who gets which sample, against a simulated world."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.simulation import STEP_TIMEOUT, World, seconds, spec
from safelight.config import SchedulingConfig
from safelight.request import SampleSpec
from safelight.scheduler import batch
from safelight.scheduler.cost import CostModel
from safelight.scheduler.dispatch import Draft
from safelight.scheduler.group import PLANS_AHEAD, Group, Pending
from safelight.scheduler.policy import AGEING
from safelight.scheduler.table import Entry
from safelight.wire import messages as m

VIDEO = 100_000  # tokens; a step takes 4 s


def work(sample: SampleSpec) -> float:
    """Seconds alone."""
    tokens = sample.tokens
    steps = sample.sampling.num_inference_steps * seconds("step", tokens, 1)
    return seconds("encode", tokens, 1) + steps + seconds("decode", tokens, 1)


def served_by(world: World, group: int) -> set[str]:
    return {name for plan in world.logs[group] for name in World.names(plan)}


def ended_in(groups: int, specs: list[SampleSpec], **config: object) -> World:
    """A world in which all of them arrived at once and have ended."""
    world = World.create(groups=groups, **config)
    world.submit(*specs)
    world.run()
    assert set(world.ended.values()) == {"completed"}
    assert len(world.ended) == len(specs)
    return world


# ------------------------------------------------------------------------------------ sharing out


def test_two_that_arrive_together_go_to_two_idle_groups_though_sharing_would_pay() -> None:
    world = ended_in(2, [spec("a.0"), spec("b.0")])
    assert sorted(map(len, (served_by(world, 0), served_by(world, 1)))) == [1, 1]
    assert all(len(plan.samples) == 1 for plan in world.steps)


@pytest.mark.parametrize(("groups", "count"), [(2, 8), (3, 12), (4, 30)])
def test_a_burst_is_dealt_evenly_over_idle_groups(groups: int, count: int) -> None:
    world = ended_in(groups, [spec(f"a.{i}", steps=10) for i in range(count)])
    shares = [len(served_by(world, group)) for group in range(groups)]
    assert sum(shares) == count
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_two_groups_do_equal_jobs_in_little_more_than_half_the_time(batch_size: int) -> None:
    specs = [spec(f"a.{i}", steps=10) for i in range(4 * batch_size)]
    one, two = (ended_in(n, specs, max_batch_size=batch_size) for n in (1, 2))
    assert two.now <= 0.6 * one.now
    assert all(two.served[group] > 0.8 * two.now for group in (0, 1))


def alternating() -> list[SampleSpec]:
    """Long and short ones in turn: to deal them round-robin is the worst there is."""
    return [spec(f"s.{i}", steps=[60, 4][i % 2], tokens=[320, 16][i % 2]) for i in range(12)]


def round_robin(specs: list[SampleSpec], groups: int, **config: object) -> float:
    """Seconds until all have ended if they are dealt out in turn."""
    return max(ended_in(1, specs[group::groups], **config).now for group in range(groups))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_long_and_short_jobs_are_balanced_better_than_in_turn(batch_size: int) -> None:
    specs = alternating()
    world = ended_in(2, specs, max_batch_size=batch_size)
    assert world.now < 0.8 * round_robin(specs, 2, max_batch_size=batch_size)
    assert abs(world.served[0] - world.served[1]) <= max(map(work, specs))


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_whoever_comes_when_there_is_work_for_all_no_group_is_long_without(groups: int) -> None:
    """Jobs of all sizes over time: groups end their work within the longest job of each other."""
    world, rng = World.create(groups=groups, max_batch_size=4), random.Random(groups)
    specs = [
        spec(f"s.{i}", steps=rng.choice([4, 20, 60]), tokens=rng.choice([16, 320]))
        for i in range(20 * groups)
    ]
    for sample in specs:
        world.at(rng.uniform(0, 1), m.Submit(samples=(sample,)))
    world.run()
    longest = max(map(work, specs))
    assert max(world.served.values()) - min(world.served.values()) <= longest


def test_equally_good_groups_take_turns() -> None:
    world = World.create(groups=3)
    for i in range(9):
        world.submit(spec(f"a.{i}"))
        world.run()
    assert [len(served_by(world, group)) for group in range(3)] == [3, 3, 3]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_sample_goes_where_its_key_runs_rather_than_overtake_a_stranger(swapped: bool) -> None:
    world = World.create(groups=2)
    tokens = (320, 80)[:: -1 if swapped else 1]
    for group in (0, 1):  # the first one goes to group 0
        world.submit(spec(f"long.{group}", steps=40, tokens=tokens[group]))
    world.run(until=0.1)
    assert served_by(world, 0) == {"long.0"}
    for i in range(3):
        world.submit(spec(f"new.{i}", steps=5, tokens=80))
    world.run()
    home = tokens.index(80)
    assert served_by(world, home) == {f"long.{home}", "new.0", "new.1", "new.2"}


def test_the_most_urgent_go_first_whatever_group_they_go_to() -> None:
    world = World.create(groups=2, max_batch_size=1)
    low = [spec(f"low.{i}", steps=4) for i in range(6)]
    high = [spec(f"high.{i}", steps=8, priority=1) for i in range(2)]
    world.submit(*low, *high)
    world.run()
    assert set(list(world.ended)[:2]) == {"high.0", "high.1"}
    for group in (0, 1):
        first = world.logs[group][0]
        assert World.names(first) in {("high.0",), ("high.1",)}


def test_every_group_holds_as_many_as_it_may() -> None:
    world = World.create(groups=3, max_running_samples=2)
    most = dict.fromkeys(range(3), 0)
    world.submit(*(spec(f"a.{i}", steps=6) for i in range(20)))
    while world.turn():
        for group, held in world.held.items():
            most[group] = max(most[group], len(held))
    assert most == {0: 2, 1: 2, 2: 2}
    assert len(world.ended) == 20


def test_an_overtaken_sample_goes_on_where_its_latents_are() -> None:
    world = World.create(groups=2, max_batch_size=1)
    world.submit(*(spec(f"long.{i}", steps=30) for i in range(2)))
    world.run(until=0.1)
    world.submit(*(spec(f"short.{i}", steps=3) for i in range(4)))
    world.run()
    assert list(world.ended)[-2:] == ["long.0", "long.1"]
    for i in range(2):  # encoded once, by one group
        encodes = [
            p for p in world.log if isinstance(p, m.Encode) and f"long.{i}" in World.names(p)
        ]
        assert len(encodes) == 1


# --------------------------------------------------------------------------- waiting for a better


def two_kinds() -> World:
    """Group 0 in a video's step of 4 s that is about to end, group 1 with a batch of images."""
    world = World.create(groups=2)
    world.submit(spec("video.0", steps=30, tokens=VIDEO))
    world.run_until(lambda: world.units["video.0"] >= 3)
    begun = world.now
    world.at(3.5, m.Submit(samples=(spec("image.0", steps=200, tokens=16),)))
    world.run(until=begun + seconds("step", VIDEO, 1) - 1e-6)
    assert "image.0" in served_by(world, 1)
    return world


def test_a_sample_waits_a_moment_for_a_group_that_is_better() -> None:
    """Group 0 asks first, but is busy for 4 s with the step it was sent already."""
    world = two_kinds()
    world.submit(spec("image.1", steps=5, tokens=16))
    world.run_until(lambda: world.units["video.0"] >= 4)
    asked = world.now
    world.run_until(lambda: "image.1" in world.ended)
    assert world.now < asked + 1.0
    assert served_by(world, 0) == {"video.0"}


def test_a_sample_does_not_wait_for_a_group_that_went_silent() -> None:
    world = two_kinds()
    world.hang.add((1, 0))
    world.submit(spec("image.1", steps=5, tokens=16))
    world.run_until(lambda: "image.1" in world.ended)
    assert "image.1" in served_by(world, 0)
    assert world.now < 60 < STEP_TIMEOUT


def a_group(index: int, *running: Entry, plan_seconds: float = 0.0, plans: int = 0) -> Group:
    """With so many plans in flight, sent just now."""
    hello = m.RankHello(group=index, rank=0, world_size=1, pid=1, load_seconds=0.0, peak_memory=0)
    group = Group(
        index, 1, hellos={0: hello}, running=list(running), held=len(running), dirty=False
    )
    for entry in running:
        entry.planned, entry.group = 3, index
    group.pending = deque(
        Pending(m.Step(seq=i, release=(), samples=()), "step", [], 0.0, plan_seconds, 1)
        for i in range(plans)
    )
    return group


def an_entry(batcher: batch.Batcher, name: str, *, steps: int = 10, tokens: int = 80) -> Entry:
    entry = Entry(spec(name, steps=steps, tokens=tokens), len(batcher.fresh), 0.0)
    batcher.rank(entry)
    return entry


@pytest.mark.parametrize("why", ["", "it hangs"])
def test_nobody_waits_for_a_group_that_is_about_to_be_ended(why: str) -> None:
    batcher = batch.Batcher(SchedulingConfig(), CostModel())
    asks = a_group(0, an_entry(batcher, "mine.0"), plan_seconds=9.0, plans=PLANS_AHEAD - 1)
    better = a_group(1, plan_seconds=0.1, plans=PLANS_AHEAD)
    asks.dirty, better.condemned = True, why
    batcher.fresh.add(new := an_entry(batcher, "new.0", steps=2))
    ((_, chosen),) = batcher.choose([asks], [asks, better], 0.0)
    assert (new in chosen) == bool(why)


def test_both_ask_again_when_a_sample_was_left_to_the_better_one() -> None:
    batcher = batch.Batcher(SchedulingConfig(), CostModel())
    mine, theirs = an_entry(batcher, "mine.0", tokens=VIDEO), an_entry(batcher, "theirs.0")
    asks = a_group(0, mine, plan_seconds=9.0, plans=PLANS_AHEAD - 1)
    better = a_group(1, theirs, plan_seconds=0.1, plans=PLANS_AHEAD)
    asks.dirty = True
    batcher.fresh.add(new := an_entry(batcher, "new.0", steps=2))
    assert batcher.choose([asks], [asks, better], 0.0) == [(asks, [mine])]
    assert asks.dirty
    assert better.dirty
    assert new in batcher.fresh
    better.pending.popleft()
    assert batcher.choose([asks, better], [asks, better], 0.1) == [(asks, [mine]), (better, [new])]


def test_nobody_waits_for_another_when_there_is_enough_for_all() -> None:
    """Else a long queue is compared with every group at every step, for nothing."""
    limit = 2
    batcher = batch.Batcher(SchedulingConfig(max_batch_size=limit), CostModel())
    mine, theirs = an_entry(batcher, "mine.0"), an_entry(batcher, "theirs.0")
    asks = a_group(0, mine, plan_seconds=9.0, plans=PLANS_AHEAD - 1)
    better = a_group(1, theirs, plan_seconds=0.1, plans=PLANS_AHEAD)
    asks.dirty = True
    for i in range(2 * limit + 1):
        batcher.fresh.add(an_entry(batcher, f"new.{i}"))
    ((_, chosen),) = batcher.choose([asks], [asks, better], 0.0)
    assert [entry.spec.id for entry in chosen] == ["new.0"]


def test_a_plan_that_is_late_is_expected_to_take_as_long_again() -> None:
    group = a_group(0, plan_seconds=2.0, plans=2)
    assert [group.busy(now) for now in (0.0, 1.5, 2.0, 5.0)] == [4.0, 2.5, 2.0, 5.0]


def test_what_a_sample_adds_counts_everybody_it_delays() -> None:
    """Against sums by hand: a step of `b` samples takes 0.1 + 0.05 b, an encode 0.2."""
    cost = CostModel()
    for size in (1, 2, 3, 4) * 20:
        cost.observe("step", 80, size, 0.1 + 0.05 * size)
        cost.observe("encode", 80, size, 0.2)
        cost.observe("decode", 80, size, 0.3)
    batcher = batch.Batcher(SchedulingConfig(), cost)
    mates = [an_entry(batcher, f"mate.{i}", steps=4 * (i + 1)) for i in range(2)]
    new = an_entry(batcher, "new.0", steps=6)
    alone = 0.2 + 6 * 0.15 + 0.3
    assert new.work == pytest.approx(alone, rel=0.02)
    idle = Draft(a_group(0), 0, 9, 16, cost)
    assert idle.added(new, [new], 0.0) == pytest.approx(alone, rel=0.02)
    group = a_group(1, *mates, plan_seconds=0.5, plans=1)  # 2 and 6 steps are left
    draft = Draft(group, 2, 9, 16, cost, batch=mates)
    shared = (2 + 6) * 0.05
    joined = 0.5 + alone + 2 * shared + 2 * 0.2
    assert draft.added(new, [*mates, new], 0.0) == pytest.approx(joined, rel=0.02)
    overtaken = 0.5 + alone + 2 * alone
    assert draft.added(new, [new], 0.0) == pytest.approx(overtaken, rel=0.02)
    # Somebody waits in that group: for the encode, the decode, and the dearer steps.
    crowd = Draft(group, 3, 9, 16, cost, batch=mates)
    longer = 0.2 + 0.3 + 6 * 0.05
    assert crowd.added(new, [*mates, new], 0.0) == pytest.approx(joined + longer, rel=0.02)


# ------------------------------------------------------------------------------- coming and going


def test_a_group_that_is_down_gets_nothing_and_its_work_moves_at_once() -> None:
    world = World.create(groups=2, max_batch_size=1)
    world.submit(*(spec(f"a.{i}", steps=20) for i in range(4)))
    world.run(until=0.1)
    before, lost = len(world.logs[1]), world.held[1]
    assert lost
    world.down(1)
    world.run()
    assert len(world.logs[1]) == before
    assert lost < served_by(world, 0)
    assert list(world.ended.values()) == ["completed"] * 4
    assert world.now < sum(work(spec("a", steps=20)) for _ in range(5))


def test_a_group_that_lacks_a_rank_gets_nothing() -> None:
    world = World.create(world_size=2, groups=1)
    world.join(1, 0)
    world.submit(*(spec(f"a.{i}") for i in range(8)))
    world.run()
    assert world.logs[1] == []
    assert len(world.ended) == 8


def test_a_group_that_returns_gets_its_share_even_of_what_another_was_dealt() -> None:
    world = World.create(groups=2)
    world.down(1)
    world.submit(*(spec(f"a.{i}", steps=20) for i in range(16)))  # all fit one batch
    world.hello(1)
    world.run()
    assert len(world.ended) == 16
    begun = PLANS_AHEAD * batch.ENCODE_AT_ONCE
    assert len(served_by(world, 1)) == 16 - begun
    assert [group.held for group in world.core.groups.values()] == [0, 0]
    world.submit(spec("b.0"), spec("b.1"))
    world.run()
    assert served_by(world, 1) & {"b.0", "b.1"}


def test_a_silent_rank_of_one_group_does_not_stall_the_other() -> None:
    world = World.create(world_size=2, groups=2, max_batch_size=1)
    world.hang.add((1, 1))
    world.submit(*(spec(f"a.{i}", steps=10) for i in range(8)))
    alone = sum(work(spec("a", steps=10)) for _ in range(8))
    world.run(until=2 * alone)
    assert len(world.ended) == 7  # all but the one that group 1 has begun
    assert world.hung == []
    world.run()
    assert len(world.ended) == 8
    (hung,) = world.hung
    assert hung.process == "workers-1"
    assert "from rank 1" in hung.detail
    assert world.now < STEP_TIMEOUT + 2 * alone


def test_those_who_wait_are_told_less_the_more_groups_serve() -> None:
    etas = []
    for groups in (1, 3):
        world = World.create(groups=groups, max_batch_size=1, max_running_samples=1)
        world.submit(*(spec(f"a.{i}", steps=20) for i in range(12)))
        world.told.clear()
        world.submit(spec("b.0", steps=20))
        (told,) = [t for t in world.told if isinstance(t, m.Progress)]
        etas.append(told.samples[0].eta)
    assert etas[1] < 0.5 * etas[0]


# -------------------------------------------------------------------------------------- properties

jobs = st.lists(
    st.tuples(
        st.floats(0, 2),  # arrival, seconds
        st.integers(1, 12),  # steps
        st.sampled_from([16, 80, 320]),  # tokens
        st.integers(-2, 2),  # priority
        st.one_of(st.none(), st.floats(0, 2)),  # cancelled after
        st.one_of(st.none(), st.integers(0, 14)),  # fails at unit
    ),
    min_size=1,
    max_size=32,
)
mishaps = st.lists(
    st.tuples(
        st.floats(0, 3),
        st.integers(0, 3),  # group
        st.sampled_from(
            ["lose", "down", "in part", "hello again", "hang", "frames lost", "disagree", "exhaust"]
        ),
        st.integers(0, 3),  # rank
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(
    jobs=jobs,
    batch_size=st.integers(1, 16),
    held=st.integers(1, 16),
    groups=st.integers(1, 4),
    ranks=st.integers(1, 4),
    mishaps=mishaps,
    jitter=st.sampled_from([0.0, 0.001, 0.1]),
)
def test_whatever_happens_every_sample_ends_once(
    jobs: list[tuple[float, int, int, int, float | None, int | None]],
    batch_size: int,
    held: int,
    groups: int,
    ranks: int,
    mishaps: list[tuple[float, int, str, int]],
    jitter: float,
) -> None:
    """The world itself asserts that no sample is in two groups or ends twice, and that no plan goes
    to a group that is not whole or is about to be ended."""
    world = World.create(ranks, groups, max_batch_size=batch_size, max_running_samples=held)
    rng = random.Random(len(jobs))
    world.delay = lambda: rng.uniform(0, jitter)
    names = tuple(f"s.{i}" for i in range(len(jobs)))
    for name, (arrival, steps, tokens, priority, cancelled, fails) in zip(names, jobs, strict=True):
        sample = spec(name, steps=steps, tokens=tokens, priority=priority)
        world.at(arrival, m.Submit(samples=(sample,)))
        if cancelled is not None:
            world.at(arrival + cancelled, m.Cancel(samples=(name,)))
        if fails is not None and fails <= steps + 1:
            world.fail.add((name, fails))
    for when, group, kind, rank in mishaps:
        happen(world, when, group % groups, kind, rank % ranks, names)
    while world.turn():
        for plan in world.log[-1:]:
            assert len(World.names(plan)) <= batch_size
        assert all(len(one) <= held for one in world.held.values())
    assert set(world.ended) == set(names)
    assert world.core.entries == {}
    for left in world.core.groups.values():
        assert (left.held, left.writing, len(left.waiting), left.running) == (0, 0, 0, [])
        assert not left.pending
    if not mishaps:
        expected = {name: "failed" for name, job in zip(names, jobs, strict=True) if fails_at(job)}
        assert all(world.ended[name] in (how, "cancelled") for name, how in expected.items())
        assert all(
            world.units[name] == job[1] + 2
            for name, job in zip(names, jobs, strict=True)
            if world.ended[name] == "completed"
        )


def fails_at(job: tuple[float, int, int, int, float | None, int | None]) -> bool:
    return job[5] is not None and job[5] <= job[1] + 1


def happen(
    world: World, when: float, group: int, kind: str, rank: int, names: tuple[str, ...]
) -> None:
    """One mishap, at `when`."""
    if kind == "lose":
        world.at(when, lambda: world.lose(group))
    elif kind == "down":
        world.at(when, lambda: world.down(group))
        world.at(when + 0.7, lambda: world.hello(group))
    elif kind == "hello again":
        world.at(when, lambda: world.hello(group))
    elif kind == "hang":
        world.at(when, lambda: world.hang.add((group, rank)))
    elif kind == "frames lost":
        world.at(when, m.Redeliver(samples=names))
    elif rank == 0:
        return
    elif kind == "in part":
        world.at(when, lambda: world.down(group))
        world.at(when + 0.7, lambda: return_in_part(world, group, rank))
    else:
        sick = world.exhaust if kind == "exhaust" else world.fail_alone
        sick |= {(name, 1, rank) for name in names[::3]}


def return_in_part(world: World, group: int, ranks: int) -> None:
    """The first ranks say hello, unless the group has been started again meanwhile."""
    if not world.ranks[group]:
        for rank in range(ranks):
            world.join(group, rank)


@settings(max_examples=10, deadline=None)
@given(rate=st.floats(0.8, 3.0), steps=st.integers(10, 40), groups=st.integers(2, 3))
def test_nobody_starves_under_overload_of_all_groups(rate: float, steps: int, groups: int) -> None:
    """A long job against an endless stream of short ones that share forwards, everywhere."""
    world, rng = World.create(groups=groups, max_batch_size=2), random.Random(steps)
    world.delay = lambda: rng.uniform(0, 0.01)
    short = work(spec("short", steps=4, tokens=16)) / groups / 1.5
    world.submit(spec("long.0", steps=steps))
    for i in range(int(20 / short * rate)):
        world.at(i * short / rate, m.Submit(samples=(spec(f"short.{i}", steps=4, tokens=16),)))
    horizon = (work(spec("long", steps=steps)) + 0.1) / AGEING
    world.run(until=3 * max(1.0, rate) * horizon)
    assert world.ended.get("long.0") == "completed"
