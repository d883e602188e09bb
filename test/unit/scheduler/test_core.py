"""The scheduler core against a simulated world."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.simulation import STEP_TIMEOUT, World, spec
from safelight.request import MAX_PROMPT, State
from safelight.scheduler import forecast
from safelight.scheduler.core import MAX_LOSSES, MAX_REDELIVERIES, ToSupervisor
from safelight.scheduler.policy import AGEING
from safelight.wire import codec, links
from safelight.wire import messages as m


def test_a_sample_is_encoded_stepped_decoded() -> None:
    world = World.create()
    world.submit(spec("a.0", steps=3))
    world.run()
    assert [type(plan).__name__ for plan in world.log] == [
        *("Encode", "Step", "Step", "Step", "Decode", "Drop"),
    ]
    assert world.ended == {"a.0": "completed"}
    assert world.log[-1].release == ("a.0",)
    assert world.core.entries == {}


def test_samples_at_different_steps_share_forwards() -> None:
    world = World.create()
    steps = [4, 6, 8, 10, 12, 14, 17, 20]
    world.submit(*(spec(f"a.{i}", steps=n) for i, n in enumerate(steps)))
    world.run()
    assert len(world.steps) < 0.45 * sum(steps)
    assert all(world.units[f"a.{i}"] == n + 2 for i, n in enumerate(steps))


@pytest.mark.parametrize("asked", [1, 2, 5])
@pytest.mark.parametrize("counted", [1, 2, 3, 7])
def test_ranks_may_count_other_steps_than_were_asked_for(asked: int, counted: int) -> None:
    """Strength takes some away, samplers of second order add some; the first is planned before the
    ranks have said so, and batch-mates get neither more nor fewer than theirs."""
    world = World.create()
    world.counted = {"a.0": counted}
    world.submit(spec("a.0", steps=asked), spec("b.0", steps=6), spec("other.0", tokens=16))
    world.run()
    assert world.ended == dict.fromkeys(("a.0", "b.0", "other.0"), "completed")
    assert world.units == {"a.0": counted + 2, "b.0": 6 + 2, "other.0": 4 + 2}
    decoded = [name for plan in world.log if isinstance(plan, m.Decode) for name in plan.samples]
    assert sorted(decoded) == ["a.0", "b.0", "other.0"]


def test_a_newcomer_joins_the_running_batch_between_steps() -> None:
    world = World.create()
    world.submit(spec("a.0", steps=20))
    world.run_until(lambda: world.units["a.0"] >= 10)
    world.submit(spec("b.0", steps=20))
    world.run()
    shared = [plan for plan in world.steps if set(plan.samples) == {"a.0", "b.0"}]
    assert 6 <= len(shared) <= 11


def test_samples_of_different_sizes_never_share() -> None:
    world = World.create()
    world.submit(spec("a.0", tokens=80), spec("b.0", tokens=16))
    world.run()
    assert all(len(plan.samples) == 1 for plan in world.steps)


def test_no_batch_when_it_does_not_pay() -> None:
    """One large sample fills the ranks: a second one would only delay it."""
    world = World.create()
    tokens = 100_000
    for batch in (1, 2):
        for _ in range(3):
            world.core.lane("").cost.observe("step", tokens, batch, 4.0 * batch)
    world.submit(spec("a.0", tokens=tokens), spec("b.0", tokens=tokens))
    world.run()
    assert all(len(plan.samples) == 1 for plan in world.steps)


def test_a_short_job_preempts_a_long_one_and_the_long_one_goes_on() -> None:
    world = World.create()
    world.submit(spec("clip.0", steps=50))
    world.run_until(lambda: world.units["clip.0"] >= 20)
    before = len(world.steps)
    world.submit(spec("image.0", steps=4, tokens=16))
    world.run_until(lambda: "image.0" in world.ended)
    since = world.steps[before:]
    assert len(since) <= 4 + 2  # its own steps, the one running and the one ahead
    world.run()
    assert world.units["clip.0"] == 52


def test_a_short_job_takes_a_place_in_a_full_batch_of_its_key() -> None:
    world = World.create(max_batch_size=2)
    world.submit(*(spec(f"long.{i}", steps=30) for i in range(2)))
    world.run_until(lambda: world.units["long.0"] >= 5)
    world.submit(spec("short.0", steps=4))
    world.run_until(lambda: "short.0" in world.ended)
    assert world.units["long.0"] > world.units["long.1"]  # the last in the order waited
    world.run()
    assert max(len(plan.samples) for plan in world.steps) == 2
    assert set(world.ended) == {"long.0", "long.1", "short.0"}


def test_priority_goes_before_shorter_work() -> None:
    world = World.create()
    world.submit(spec("short.0", steps=4, tokens=16), spec("long.0", steps=30, priority=1))
    world.run()
    assert list(world.ended) == ["long.0", "short.0"]


def test_at_most_one_further_step_after_a_cancel() -> None:
    world = World.create()
    world.submit(spec("a.0", steps=50), spec("b.0", steps=50))
    world.run_until(lambda: world.units["a.0"] >= 10)
    started = len(world.steps)  # the last of these is running now
    world.cancel("a.0")
    world.run()
    further = [plan for plan in world.steps[started:] if "a.0" in plan.samples]
    assert len(further) <= 1
    assert world.ended == {"a.0": "cancelled", "b.0": "completed"}


def test_a_waiting_sample_is_cancelled_without_a_plan() -> None:
    world = World.create()
    world.core.groups.clear()  # nobody serves
    world.submit(spec("a.0"))
    world.cancel("a.0", "unknown.0")
    (load,) = [t for t in world.told[-1:] if isinstance(t, m.Load)]
    assert (load.unfinished, load.backlog) == (0, 0.0)
    assert world.ended == {"a.0": "cancelled"}
    assert world.log == []


@pytest.mark.parametrize("unit", [0, 1, 3, 5])
def test_a_sample_fails_alone(unit: int) -> None:
    """Unit 0 is the encode, 5 the decode."""
    world = World.create()
    world.fail.add(("a.0", unit))
    world.submit(spec("a.0"), spec("b.0"))
    world.run()
    assert world.ended == {"a.0": "failed", "b.0": "completed"}
    assert world.held[0] == set()


def answer(world: World, rank: int, seq: int, *failed: str) -> None:
    failures = tuple(m.SampleFailure(sample=name, code="x", message="") for name in failed)
    world.send(m.Report(group=0, rank=rank, seq=seq, started=0.0, finished=0.01, failures=failures))


def test_a_plan_is_done_when_all_ranks_have_answered_in_whatever_order() -> None:
    world = World.create(world_size=2)
    world.submit(spec("a.0", steps=3))
    first, second = (pending.plan.seq for pending in world.core.groups[0].pending)
    world.told.clear()
    for rank, seq in ((1, first), (1, second), (1, second), (0, first)):
        answer(world, rank, seq)
    entry = world.core.entries["a.0"]
    assert entry.done == 1
    answer(world, 0, second)
    assert entry.done == 2
    assert [p.plan.seq for p in world.core.groups[0].pending] == [second + 1, second + 2]


def test_rank_0_ahead_of_the_others_is_not_believed_alone() -> None:
    world = World.create(world_size=2)
    world.submit(spec("a.0", steps=3))
    first, second = (pending.plan.seq for pending in world.core.groups[0].pending)
    answer(world, 0, first)
    answer(world, 0, second)
    assert world.core.entries["a.0"].done == 0
    answer(world, 1, first)
    answer(world, 1, second)
    assert world.core.entries["a.0"].done == 2


def test_lost_ranks_start_their_samples_again() -> None:
    world = World.create()
    world.submit(spec("a.0", steps=10), spec("b.0", steps=10))
    world.run_until(lambda: world.units["a.0"] >= 5)
    world.units.clear()
    world.lose()
    world.run()
    assert world.ended == {"a.0": "completed", "b.0": "completed"}
    assert world.units["a.0"] == 12


def test_a_sample_whose_ranks_keep_dying_is_failed() -> None:
    world = World.create()
    world.submit(spec("a.0", steps=10))
    for _ in range(MAX_LOSSES):
        world.run_until(lambda: world.log and isinstance(world.log[-1], m.Step))
        world.log.clear()
        world.lose()
    assert world.ended == {"a.0": "failed"}


def test_an_answer_of_a_lost_incarnation_is_ignored() -> None:
    world = World.create()
    world.submit(spec("a.0", steps=2))
    old = [pending.plan.seq for pending in world.core.groups[0].pending]
    world.lose()
    new = [pending.plan.seq for pending in world.core.groups[0].pending]
    assert not set(old) & set(new)
    for seq in old:  # they come late
        answer(world, 0, seq)
    assert world.core.entries["a.0"].done == 0
    world.run()
    assert world.ended == {"a.0": "completed"}
    assert world.not_held == []


def test_a_rank_that_says_hello_again_lost_everything_but_did_not_crash() -> None:
    world = World.create()
    world.submit(spec("a.0", steps=10))
    for _ in range(MAX_LOSSES + 1):
        world.run_until(lambda: world.units["a.0"] >= 3)
        world._events.clear()
        world.units.clear()
        world.hello()
    world.run()
    assert world.ended == {"a.0": "completed"}


def test_losses_count_only_against_what_was_running() -> None:
    """A preempted clip is not to blame for what a poisonous image does to the ranks."""
    world = World.create()
    world.submit(spec("clip.0", steps=50))
    world.run_until(lambda: world.units["clip.0"] >= 5)
    world.submit(spec("poison.0", steps=4, tokens=16))
    for _ in range(MAX_LOSSES):
        world.run_until(lambda: "poison.0" in World.names(world.log[-1]))
        world.lose()
    assert world.ended == {"poison.0": "failed"}
    world.run()
    assert world.ended["clip.0"] == "completed"


def test_a_file_that_is_written_after_its_ranks_were_lost_is_not_made_again() -> None:
    world = World.create()
    world.write = False
    world.submit(spec("a.0", steps=2))
    world.run()
    world.lose()
    world.send(m.Written(samples=("a.0",)))
    world.run()
    assert world.core.entries == {}
    assert world.ended == {}
    assert len(world.steps) <= 2 + 1  # nothing beyond the plans in flight


def test_frames_lost_while_the_decode_is_in_flight_are_made_again() -> None:
    world = World.create()
    world.submit(spec("a.0", steps=2))
    world.run_until(lambda: isinstance(world.log[-1], m.Decode))
    world.send(m.Redeliver(samples=("a.0",)))
    world.run()
    assert sum(isinstance(plan, m.Decode) for plan in world.log) == 2
    assert world.ended == {"a.0": "completed"}


def test_frames_that_are_always_lost_fail_the_sample() -> None:
    world = World.create()
    world.write = False
    world.submit(spec("a.0", steps=2))
    for _ in range(MAX_REDELIVERIES + 1):
        world.run()
        world.send(m.Redeliver(samples=("a.0",)))
    assert world.ended == {"a.0": "failed"}
    world.run()
    assert world.core.groups[0].writing == 0


def test_an_encode_plan_of_the_longest_prompts_fits_a_message() -> None:
    world = World.create()
    prompt = "\U0001f534" * MAX_PROMPT
    base = spec("a.0")
    sampling = msgspec.structs.replace(base.sampling, negative_prompt=prompt)
    parameters = {"prompt": prompt, "negative_prompt": prompt}
    delivery = msgspec.structs.replace(base.delivery, parameters=parameters)
    for i in range(12):
        world.submit(
            msgspec.structs.replace(
                base, id=f"a.{i}", prompt=prompt, sampling=sampling, delivery=delivery
            )
        )
    world.run()
    sizes = [len(codec.encode(plan)) for plan in world.log]
    assert max(sizes) < links.MAX_MESSAGE
    assert len(world.ended) == 12


def test_a_hung_rank_is_named() -> None:
    world = World.create(world_size=2)
    world.submit(spec("a.0"))
    seq = world.core.groups[0].pending[0].plan.seq
    world.send(m.Report(group=0, rank=0, seq=seq, started=0, finished=1))
    assert world.core.deadline() == STEP_TIMEOUT
    commands = world.core.tick(STEP_TIMEOUT)
    (hung,) = [c.message for c in commands if isinstance(c, ToSupervisor)]
    assert isinstance(hung, m.Hung)
    assert hung.process == "workers-0"
    assert "rank 1" in hung.detail


def test_a_manager_that_attaches_hears_the_state() -> None:
    world = World.create(groups=2)
    world.submit(spec("a.0"))
    world.told.clear()
    world.send(m.Attach())
    groups = [t for t in world.told if isinstance(t, m.GroupStatus)]
    assert [(g.group, g.ready) for g in groups] == [(0, True), (1, True)]
    (load,) = [t for t in world.told if isinstance(t, m.Load)]
    assert load.unfinished == 1
    assert load.backlog > 0


def test_those_who_wait_are_told_their_place_and_a_longer_wait_for_a_later_one() -> None:
    world = World.create()
    world.core.groups.clear()  # nobody serves
    world.submit(*(spec(f"a.{i}", steps=5) for i in range(4)))
    (told,) = [t for t in world.told if isinstance(t, m.Progress)]
    assert [p.position for p in told.samples] == [0, 1, 2, 3]
    etas = [p.eta for p in told.samples]
    assert etas == sorted(set(etas))
    assert etas[3] > 3 * etas[0]


def test_eta_of_a_running_sample_falls_to_nothing() -> None:
    world = World.create()
    world.submit(spec("a.0", steps=10))
    world.run()
    etas = [p.eta for t in world.told if isinstance(t, m.Progress) for p in t.samples if p.step]
    assert etas == sorted(etas, reverse=True)
    assert etas[0] > 5 * etas[-1] > 0


def test_the_same_submit_twice_is_one_job() -> None:
    world = World.create()
    world.submit(spec("a.0"))
    world.submit(spec("a.0"))
    world.run()
    assert world.units["a.0"] == 6


def test_frames_that_nobody_takes_stop_the_decoding_not_the_steps() -> None:
    world = World.create(max_batch_size=1, max_running_samples=8)
    world.write = False
    world.submit(*(spec(f"a.{i}", steps=2) for i in range(5)))
    world.run()
    decoded = [plan for plan in world.log if isinstance(plan, m.Decode)]
    assert len(decoded) == 2
    world.write = True
    world.send(m.Written(samples=tuple(s for plan in decoded for s in plan.samples)))
    world.run()
    assert world.core.entries == {}
    assert len(world.ended) == 3  # the others were written by hand


def test_lost_frames_are_decoded_again() -> None:
    world = World.create()
    world.write = False
    world.submit(spec("a.0", steps=2))
    world.run()
    assert world.core.entries["a.0"].state is State.WRITING
    world.write = True
    world.send(m.Redeliver(samples=("a.0",)))
    world.run()
    assert sum(isinstance(plan, m.Decode) for plan in world.log) == 2
    assert len(world.steps) == 2
    assert world.core.entries == {}


def test_no_more_samples_are_held_than_fit() -> None:
    world = World.create(max_running_samples=3, max_batch_size=8)
    world.submit(*(spec(f"a.{i}", steps=3) for i in range(10)))
    while world.turn():
        assert len(world.held[0]) <= 3
    assert len(world.ended) == 10


def test_two_groups_share_the_load() -> None:
    world = World.create(groups=2, max_batch_size=1)
    world.submit(*(spec(f"a.{i}", steps=10) for i in range(6)))
    world.run()
    assert len(world.ended) == 6
    serial = sum(10 * 0.0132 + 0.02 for _ in range(6))
    assert world.now < 0.7 * serial


# ------------------------------------------------------------------------------------ properties

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
    max_size=16,
)


mishaps = st.lists(
    st.tuples(st.floats(0, 3), st.sampled_from(["ranks", "frames"])), max_size=MAX_LOSSES - 1
)


@settings(max_examples=80, deadline=None)
@given(
    jobs=jobs,
    batch=st.integers(1, 8),
    held=st.integers(1, 12),
    ranks=st.integers(1, 3),
    mishaps=mishaps,
)
def test_every_sample_ends_once_and_runs_its_steps_once(
    jobs: list[tuple[float, int, int, int, float | None, int | None]],
    batch: int,
    held: int,
    ranks: int,
    mishaps: list[tuple[float, str]],
) -> None:
    world = World.create(ranks, max_batch_size=batch, max_running_samples=held)
    for i, (arrival, steps, tokens, priority, cancelled, fails) in enumerate(jobs):
        name = f"s.{i}"
        sample = spec(name, steps=steps, tokens=tokens, priority=priority)
        world.at(arrival, m.Submit(samples=(sample,)))
        if cancelled is not None:
            world.at(arrival + cancelled, m.Cancel(samples=(name,)))
        if fails is not None and fails <= steps + 1:
            world.fail.add((name, fails))
    names = tuple(f"s.{i}" for i in range(len(jobs)))
    for when, kind in mishaps:
        lost: object = world.lose if kind == "ranks" else m.Redeliver(samples=names)
        world.at(when, lost)  # type: ignore[arg-type]
    while world.turn():
        for plan in world.log[-1:]:
            assert len(World.names(plan)) <= batch
        assert len(world.held[0]) <= held
    assert set(world.ended) == {f"s.{i}" for i in range(len(jobs))}
    for i, (_, steps, *_rest) in enumerate(jobs):
        name = f"s.{i}"
        if world.ended[name] == "completed":
            assert world.units[name] >= steps + 2
        if not mishaps:
            assert world.units[name] <= steps + 2
    # Only a sample that had failed in the plan before may be missed by a rank.
    assert all(world.ended[name] == "failed" for name in world.not_held)
    assert world.core.entries == {}
    group = world.core.groups[0]
    assert (group.held, group.writing, len(group.waiting), group.running) == (0, 0, 0, [])


@settings(max_examples=10, deadline=None)
@given(
    rate=st.floats(0.8, 3.0),
    steps=st.integers(10, 40),
    priority=st.integers(0, 1),
)
def test_nobody_starves_under_overload(rate: float, steps: int, priority: int) -> None:
    """A long job against an endless stream of short ones (of higher priority), at overload."""
    world = World.create(max_batch_size=1, priority_seconds=1.0)
    short = 4 * 0.0106 + 0.008
    world.submit(spec("long.0", steps=steps))
    arrivals = int(40 / short * rate)
    for i in range(arrivals):
        sample = spec(f"short.{i}", steps=4, tokens=16, priority=priority)
        world.at(i * short / rate, m.Submit(samples=(sample,)))
    own = steps * 0.0132 + 0.01
    # It is overtaken only by arrivals within this many seconds; at overload those take longer.
    horizon = (own + priority * 1.0 + 0.1) / AGEING
    world.run(until=1.5 * max(1.0, rate) * horizon)
    assert world.ended.get("long.0") == "completed"


def test_a_flush_is_executed_behind_what_was_sent_and_before_what_comes() -> None:
    world = World.create()
    world.submit(spec("a.0", steps=4))
    world.run_until(lambda: world.units["a.0"] >= 2)
    for _ in range(3):  # those that wait for the ranks are one
        world.send(m.FlushCaches())
    world.submit(spec("b.0", steps=2))
    world.run()
    assert world.ended == {"a.0": "completed", "b.0": "completed"}
    flushes = [i for i, plan in enumerate(world.log) if isinstance(plan, m.Drop) and plan.caches]
    begun = [
        i
        for i, plan in enumerate(world.log)
        if isinstance(plan, m.Encode) and plan.samples[0].id == "b.0"
    ]
    assert len(flushes) == 1 and flushes[0] < begun[0]


@pytest.mark.parametrize(("pause", "places"), [(0.0, [2, 1, 0]), (1e6, [2, 1])])
def test_those_who_wait_are_told_that_the_queue_moves_on(
    monkeypatch: pytest.MonkeyPatch, pause: float, places: list[int]
) -> None:
    """Not more often than every `NEWS_S` seconds, as it takes time."""
    monkeypatch.setattr(forecast, "NEWS_S", pause)
    world = World.create()
    sizes = (4, 16, 64)  # they share no forward
    world.submit(*(spec(f"{size}.0", tokens=size, steps=9) for size in sizes))
    told = _positions(world, "64.0")
    world.run()
    assert told == [2]
    assert _positions(world, "64.0")[:3] == places


def _positions(world: World, sample: str) -> list[int]:
    """What was said of a sample's place while it waited, without repetitions."""
    said = [p for t in world.told if isinstance(t, m.Progress) for p in t.samples]
    places = [p.position for p in said if p.sample == sample and p.state is State.QUEUED]
    return [place for place, _ in itertools.groupby(places)]
