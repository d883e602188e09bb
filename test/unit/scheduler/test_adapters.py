"""Adapters are tried out on every group of their model, in order with its other plans."""

from __future__ import annotations

import msgspec

from fakes.simulation import World, spec
from safelight.request import Adapter
from safelight.wire import codec
from safelight.wire import messages as m

A, B = (Adapter(name=name, path=f"/{name}", digest=name * 64) for name in "ab")


def load(ticket: str = "t", model: str = "", *adapters: Adapter) -> m.LoadAdapters:
    return m.LoadAdapters(ticket=ticket, model=model, adapters=adapters or (A,))


def answers(world: World) -> list[m.AdaptersLoaded]:
    return [message for message in world.told if isinstance(message, m.AdaptersLoaded)]


def adapts(world: World, group: int = 0) -> list[m.Adapt]:
    return [plan for plan in world.logs[group] if isinstance(plan, m.Adapt)]


def test_every_group_of_the_model_tries_and_one_answer_is_told() -> None:
    world = World.create(world_size=2, groups=3)
    world.models = {0: "x", 1: "x", 2: "y"}
    for group in world.models:
        world.lose(group)
    world.send(load("t", "x", A, B))
    assert answers(world) == []
    world.run()
    assert [len(adapts(world, group)) for group in range(3)] == [1, 1, 0]
    assert adapts(world)[0].load == (A, B)
    assert answers(world) == [m.AdaptersLoaded(ticket="t", layers={"transformer": 10})]


def test_the_first_failure_of_any_rank_is_told_and_nobody_is_ended() -> None:
    world = World.create(world_size=2, groups=2)
    world.unfit = {(B.digest, 1)}
    world.send(load("t", "", A, B))
    world.submit(spec("s.0"))
    world.run()
    (answer,) = answers(world)
    assert (answer.ticket, answer.error) == ("t", "b 1")
    assert world.hung == []
    assert world.ended == {"s.0": "completed"}


def test_it_comes_behind_what_was_sent_and_before_what_comes_later() -> None:
    world = World.create()
    world.submit(spec("a.0", steps=9))
    world.run_until(lambda: world.units["a.0"] > 3)
    world.send(load())
    world.submit(spec("b.0", priority=9))
    world.run()
    kinds = [type(plan).__name__ for plan in world.log]
    assert kinds.count("Adapt") == 1
    later = [p for p in world.log[kinds.index("Adapt") :] if isinstance(p, m.Encode)]
    assert [s.id for plan in later for s in plan.samples] == ["b.0"]
    assert world.ended == {"a.0": "completed", "b.0": "completed"}
    seqs = [plan.seq for plan in world.log]  # type: ignore[union-attr]
    assert seqs == sorted(seqs)


def test_where_nobody_serves_all_is_well() -> None:
    world = World.create()
    world.send(load("none", "unloaded"))
    world.down()
    world.send(load("down"))
    world.run()
    assert answers(world) == [m.AdaptersLoaded(ticket=name) for name in ("none", "down")]


def test_a_group_that_is_coming_up_does_not_hold_it_up() -> None:
    world = World.create(world_size=2, groups=1)
    world.join(1, 0)
    world.send(load())
    world.run_until(lambda: bool(answers(world)))
    assert answers(world)[0].error is None


def test_ranks_that_are_lost_while_they_try_are_told_of() -> None:
    world = World.create(groups=2)
    world.send(load())
    world.down(1)
    world.run()
    (answer,) = answers(world)
    assert answer.error == "The ranks that tried it were lost."


def test_ranks_that_hang_over_it_are_ended() -> None:
    world = World.create()
    world.hang.add((0, 0))
    world.send(load())
    world.run()
    assert len(world.hung) == 1
    (answer,) = answers(world)
    assert answer.error is not None


def test_forgetting_is_told_to_all_and_not_answered() -> None:
    world = World.create(groups=2)
    world.send(m.ForgetAdapters(model="", digests=(A.digest,)))
    world.run()
    plans = [adapts(world, group)[0] for group in range(2)]
    assert [(plan.load, plan.drop) for plan in plans] == [((), (A.digest,))] * 2
    assert answers(world) == []


def test_what_a_forward_costs_is_told_without_the_adapters_time() -> None:
    """Loading takes seconds, once."""
    world, other = World.create(), World.create()
    for one, adapting in ((world, 0.0), (other, 50.0)):
        one.submit(spec("a.0"))
        (plan,) = (p.plan for p in list(one.core.groups[0].pending)[:1])
        report = m.Report(
            group=0, rank=0, seq=plan.seq, started=0.0, finished=1.0 + adapting, adapting=adapting
        )
        one.send(report)
    costs = [one.core.lane("").cost.predict("encode", 80) for one in (world, other)]
    assert costs[0] == costs[1]


def test_it_survives_the_wire() -> None:
    plan = m.Adapt(seq=1, release=(), load=(A,), drop=("x",))
    decoded = msgspec.msgpack.decode(codec.encode(plan), type=m.ToRank)
    assert decoded == plan
