"""Several models: each has its own queue, groups and costs; one is drained while others go on."""

from __future__ import annotations

import msgspec

from fakes.simulation import World, spec
from safelight.request import SampleSpec
from safelight.wire import messages as m


def of(model: str, name: str, **values: int) -> SampleSpec:
    return msgspec.structs.replace(spec(name, **values), model=model)


def two_models() -> World:
    world = World.create(groups=0)
    world.models = {0: "a", 1: "b"}
    world.hello(0)
    world.hello(1)
    return world


def drained(world: World) -> list[str]:
    return [message.model for message in world.told if isinstance(message, m.Drained)]


def test_samples_go_to_the_groups_of_their_model() -> None:
    world = two_models()
    world.submit(*(of("ab"[i % 2], f"s.{i}") for i in range(8)))
    world.run()
    for group, model in world.models.items():
        names = {name for plan in world.logs[group] for name in world.names(plan)}
        assert names == {f"s.{i}" for i in range(8) if "ab"[i % 2] == model}
    assert len(world.ended) == 8


def test_a_model_without_groups_waits_and_holds_up_nobody() -> None:
    world = two_models()
    world.submit(of("c", "later.0", priority=100), of("a", "now.0"))
    world.run()
    assert world.ended == {"now.0": "completed"}
    world.models[2] = "c"
    world.hello(2)
    world.run()
    assert set(world.ended) == {"now.0", "later.0"}


def test_what_a_forward_costs_is_learned_for_each_model() -> None:
    world = two_models()
    world.submit(of("a", "a.0"))
    world.run()
    untouched = world.core.lane("b").cost.predict("step", 80)
    assert world.core.lane("a").cost.predict("step", 80) != untouched


def test_a_draining_model_finishes_what_was_accepted_and_keeps_the_rest() -> None:
    world = two_models()
    world.submit(of("a", "first.0", steps=20))
    world.run_until(lambda: world.units["first.0"] > 3)
    world.send(m.Drain(model="a"))
    assert drained(world) == []
    world.submit(of("a", "second.0"), of("b", "other.0"))
    world.run()
    assert set(world.ended) == {"first.0", "other.0"}
    assert drained(world) == ["a"]
    world.down(0)
    world.hello(0)  # it is loaded again
    world.run()
    assert set(world.ended) == {"first.0", "other.0", "second.0"}


def test_an_idle_model_is_drained_at_once() -> None:
    world = two_models()
    world.send(m.Drain(model="a"))
    assert drained(world) == ["a"]


def test_a_sample_that_waits_for_its_model_can_be_cancelled() -> None:
    world = two_models()
    world.send(m.Drain(model="a"))
    world.submit(of("a", "late.0"), of("a", "later.0"))
    positions = {
        p.sample: p.position for t in world.told if isinstance(t, m.Progress) for p in t.samples
    }
    assert positions == {"late.0": 0, "later.0": 1}
    world.cancel("late.0")
    world.down(0)
    world.hello(0)
    world.run()
    assert world.ended == {"late.0": "cancelled", "later.0": "completed"}
    assert world.core.lane("a").unfinished == 0
    assert world.core.lane("a").later == []


def test_a_crash_while_draining_loses_nothing() -> None:
    world = two_models()
    world.submit(of("a", "first.0", steps=20))
    world.run_until(lambda: world.units["first.0"] > 3)
    world.send(m.Drain(model="a"))
    world.lose(0)
    world.submit(of("a", "second.0"))
    world.run()
    assert set(world.ended) == {"first.0"}
    assert drained(world) == ["a"]


def test_a_new_manager_knows_nothing_of_a_drain() -> None:
    world = two_models()
    world.send(m.Drain(model="a"))
    world.submit(of("a", "late.0"))
    world.send(m.Attach())
    world.run()
    assert world.ended == {"late.0": "completed"}


def test_what_waited_for_a_model_is_done_before_it_is_unloaded_again() -> None:
    """The manager may want it gone before all of its ranks have said hello."""
    world = two_models()
    world.send(m.Drain(model="a"))
    world.down(0)
    world.submit(of("a", "late.0"))
    world.told.clear()
    world.send(m.Drain(model="a"))
    assert drained(world) == []
    world.submit(of("a", "later.0"))
    world.hello(0)
    world.run()
    assert world.ended == {"late.0": "completed"}
    assert drained(world) == ["a"]
