"""Random schedules on real ranks: batches, preemption, cancelling change no answer, hang nobody.

The scheduler's own core makes every schedule, against ranks that take predicted time; real ranks
then execute it. Every step of every sample is compared with what one rank gives for it alone. Ranks
that disagreed about what to do would wait for each other until the pool's low timeout.
"""

from __future__ import annotations

import itertools
import random
from functools import cache

import msgspec
import numpy as np
import pytest

from fakes import parity
from fakes.parity import Settings
from fakes.ranks import RankPool
from fakes.simulation import World
from fakes.simulation import spec as sample_spec
from safelight import config as configuration
from safelight.models.registry import load_card
from safelight.request import SampleSpec
from safelight.wire.messages import Plan, Shutdown, Step

SCHEDULES = 100
"""For each number of ranks."""

TOLERANCE = 1e-4

TWO: tuple[Settings, ...] = (
    (("ulysses_degree", 2),),
    (("ring_degree", 2),),
    (("cfg_parallel_size", 2), ("tp_size", 2)),
)
FOUR: tuple[Settings, ...] = (
    (("ulysses_degree", 2), ("ring_degree", 2)),
    (("cfg_parallel_size", 2), ("ulysses_degree", 2), ("vae_parallel", "on")),
    (("ulysses_degree", 4), ("tp_size", 4)),
)


@cache
def specs() -> tuple[SampleSpec, ...]:
    """Samples of two sizes, guided and not, of one to three steps."""
    card = load_card(configuration.build({}))
    made = []
    for index, (frames, scale, steps) in enumerate(
        itertools.product((1, 5), (3.0, 1.0), (1, 2, 3))
    ):
        sampling = card.resolve(
            {
                "width": 64,
                "height": 64,
                "num_frames": frames,
                "guidance_scale": scale,
                "num_inference_steps": steps,
                "seed": index,
            }
        )
        made.append(
            msgspec.structs.replace(
                sample_spec(f"s{index}.0"),
                prompt=f"a red circle moving left {index}",
                sampling=sampling,
                batch_key=card.batch_key(sampling, "text-to-video"),
                tokens=card.tokens(sampling),
            )
        )
    return tuple(made)


@cache
def alone() -> dict[str, np.ndarray]:
    """Latents of every sample after each of its steps, on one rank, in a batch of one."""
    from safelight.wire.messages import Encode

    found: dict[str, np.ndarray] = {}
    for spec in specs():
        plans: list[Plan] = [Encode(seq=0, release=(), samples=(spec,))]
        steps = range(spec.sampling.num_inference_steps)
        plans += [Step(seq=1 + i, release=(), samples=(spec.id,)) for i in steps]
        found |= parity.execute(0, (), plans)
    return found


def schedule(seed: int) -> list[Plan]:
    """What a group is told while samples of random priority come, and some are cancelled."""
    chance = random.Random(seed)
    world = World.create(max_batch_size=chance.randint(1, 4), max_running_samples=6)
    chosen = chance.sample(specs(), chance.randint(2, 5))
    for spec in chosen:
        urgent = msgspec.structs.replace(spec, priority=chance.choice((-50, 0, 50)))
        when = chance.uniform(0, 0.05)
        world.at(when, lambda spec=urgent: world.submit(spec))
        if chance.random() < 0.3:
            world.at(when + chance.uniform(0, 0.05), lambda name=spec.id: world.cancel(name))
    world.run()
    assert set(world.ended) == {spec.id for spec in chosen}
    return [plan for plan in world.log if not isinstance(plan, Shutdown)]


def check(pool: RankPool, layouts: tuple[Settings, ...], seeds: range) -> None:
    reference = alone()
    for seed in seeds:
        plans = schedule(seed)
        everybody = pool.run(parity.execute, layouts[seed % len(layouts)], plans)
        assert everybody[0], "a schedule in which nothing is computed proves nothing"
        for found in everybody:
            assert found.keys() == everybody[0].keys()
            for name, latents in found.items():
                assert np.array_equal(latents, everybody[0][name]), f"{seed}: ranks differ"
                difference = np.abs(latents - reference[name]).max()
                assert difference <= TOLERANCE, f"{seed}: {name} differs by {difference}"


@pytest.mark.parametrize("part", range(4))
def test_schedules_of_two_ranks(two_ranks: RankPool, part: int) -> None:
    check(two_ranks, TWO, range(part, SCHEDULES, 4))


@pytest.mark.parametrize("part", range(4))
def test_schedules_of_four_ranks(four_ranks: RankPool, part: int) -> None:
    check(four_ranks, FOUR, range(part, SCHEDULES, 4))


def test_the_schedules_are_as_varied_as_they_should_be() -> None:
    """They preempt, batch samples at different steps, and cancel some that had begun."""
    steps = {spec.id: spec.sampling.num_inference_steps for spec in specs()}
    resumed = mixed = cut_short = 0
    for seed in range(SCHEDULES):
        done: dict[str, int] = {}
        previous: set[str] = set()
        for plan in schedule(seed):
            if not isinstance(plan, Step):
                continue
            mixed += len({done.get(name, 0) for name in plan.samples}) > 1
            resumed += any(name in done and name not in previous for name in plan.samples)
            previous = set(plan.samples)
            for name in plan.samples:
                done[name] = done.get(name, 0) + 1
        cut_short += any(count < steps[name] for name, count in done.items())
    assert min(resumed, mixed, cut_short) >= 10, (resumed, mixed, cut_short)
