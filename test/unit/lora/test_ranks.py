"""Adapters on two real ranks: loaded after the sequence was split, the picture of one rank."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from fakes import cases
from fakes import lora as fakes
from fakes.cases import Case, Checkpoints
from fakes.lora import Files
from fakes.parity import Settings
from fakes.ranks import RankPool

LARGEST = 1e-5
"""Difference that several ranks may make, in latents; of their largest where that is above 1."""

CASE = {case.name: case for case in fakes.cases()}
ULYSSES: Settings = (("ulysses_degree", 2),)
LAYOUTS: list[tuple[str, Settings]] = [
    ("Wan 2.1", ULYSSES),
    ("Wan 2.1", (("ring_degree", 2),)),
    ("Wan 2.1", (("cfg_parallel_size", 2),)),
    ("Wan 2.2 A14B", ULYSSES),
    ("FLUX.1 dev", (*ULYSSES, ("tp_size", 2))),
    ("FLUX.2", ULYSSES),
    ("SDXL", (("cfg_parallel_size", 2),)),
    ("SD3", ULYSSES),
    ("Qwen-Image", ULYSSES),
    ("Z-Image", ULYSSES),
    ("LTX-2", ULYSSES),
    ("HunyuanVideo 1.5", (("cfg_parallel_size", 2),)),
]


def _id(layout: tuple[str, Settings]) -> str:
    return f"{layout[0]} {' '.join(name for name, _ in layout[1])}"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("layout", LAYOUTS, ids=_id)
def test_two_ranks_make_what_one_makes(
    layout: tuple[str, Settings],
    two_ranks: RankPool,
    checkpoints: Checkpoints,
    loras: Files,
    record_property: Any,
) -> None:
    """Of samples that take turns, with the sequence split before any adapter was there."""
    name, settings = layout
    case: Case = CASE[name]
    where = checkpoints.of(case)
    a, b = loras.adapter(case, "a"), loras.adapter(case, "b", 0.5)
    base = cases.sample(case, where)
    specs = [
        msgspec.structs.replace(base, id=f"{what}.0", adapters=adapters, merged=merged)
        for what, adapters, merged in [
            ("base", (), False),
            ("one", (a,), False),
            ("merged", (a, b), True),
            ("two", (a, b), False),
            ("late", (), False),
        ]
    ]
    path = (("model_path", str(where)),)
    made, others = two_ranks.run(fakes.in_turns, path + settings, specs)
    expected = fakes.in_turns(0, path, specs)
    two_ranks.close()
    for mine, theirs in zip(made, others, strict=True):
        assert np.array_equal(mine, theirs)
    assert np.array_equal(made[0], made[-1])
    worst = max(map(fakes.difference, made, expected))
    record_property("worst", worst)
    assert worst <= LARGEST
