"""Adapters on two real ranks: loaded after the sequence was split, the picture of one rank."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from fakes import cases
from fakes import lora as fakes
from fakes.cases import Case, Checkpoints, Stepper
from fakes.lora import Files
from fakes.parity import Settings, one_thread
from fakes.ranks import RankPool
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec

LARGEST = 1e-5
"""Difference that several ranks may make, in latents; of their largest where that is above 1."""

CASE = {case.name: case for case in fakes.cases()}
ULYSSES: Settings = (("ulysses_degree", 2),)
LAYOUTS: list[tuple[str, Settings]] = [
    ("Wan 2.1", ULYSSES),
    ("Wan 2.1", (("ring_degree", 2),)),
    ("Wan 2.1", (("cfg_parallel_size", 2),)),
    ("Wan 2.2 A14B", ULYSSES),
    ("FLUX.1 dev", ULYSSES + (("tp_size", 2),)),
    ("FLUX.2", ULYSSES),
    ("SDXL", (("cfg_parallel_size", 2),)),
    ("SD3", ULYSSES),
    ("Qwen-Image", ULYSSES),
    ("Z-Image", ULYSSES),
    ("LTX-2", ULYSSES),
    ("HunyuanVideo 1.5", (("cfg_parallel_size", 2),)),
]


def alone(where: Any, one: SampleSpec) -> np.ndarray:
    with one_thread():
        stepper = Stepper(cases.loaded(where), Mesh.single(cases.CPU))
        stepper.begin(one)
        stepper.step(one.id, count=stepper.left(one.id))
        made: np.ndarray = stepper.executor._sessions[one.id].latents.float().numpy()
        return made.copy()


def _id(layout: tuple[str, Settings]) -> str:
    return f"{layout[0]} {' '.join(name for name, _ in layout[1])}"


@pytest.mark.parametrize("layout", LAYOUTS, ids=_id)
def test_two_ranks_make_what_one_makes(
    layout: tuple[str, Settings], two_ranks: RankPool, checkpoints: Checkpoints, loras: Files
) -> None:
    name, settings = layout
    case: Case = CASE[name]
    where = checkpoints.of(case)
    base = cases.sample(case, where)
    a, b = loras.adapter(case, "a"), loras.adapter(case, "b", 0.5)
    settings = (("model_path", str(where)), *settings)
    worst = {}
    for what, adapters, merged in [
        ("base", (), False),
        ("one", (a,), False),
        ("merged", (a, b), True),
        ("two", (a, b), False),
        ("base again", (), False),
    ]:
        spec = msgspec.structs.replace(base, adapters=adapters, merged=merged)
        made = [latents for latents, _ in two_ranks.run(cases.on_ranks, settings, spec)]
        assert np.array_equal(made[0], made[1]), what
        if what == "base again":
            assert np.array_equal(made[0], before)
            break
        if what == "base":
            before = made[0]
        expected = alone(where, spec)
        worst[what] = float(
            np.abs(made[0] - expected).max() / max(1.0, np.abs(expected).max())
        )
    two_ranks.close()
    print(name, worst)
    assert max(worst.values()) <= LARGEST, worst
