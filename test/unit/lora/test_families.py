"""Adapters of every family: the bits of diffusers' pipeline with them, whoever else is there."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from fakes import cases
from fakes.cases import Case, Checkpoints, Stepper
from fakes.lora import Files, difference, upstream
from fakes.lora import cases as lora_cases
from safelight.parallel.mesh import Mesh
from safelight.request import Adapter, SampleSpec

LARGEST = 1e-5
"""Difference that batch-mates may make, in latents; of their largest where that is above 1."""

CASES = lora_cases()
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def spec(
    case: Case, where: Any, name: str, adapters: tuple[Adapter, ...] = (), **values: Any
) -> SampleSpec:
    one = cases.sample(case, where, f"{name}.0", **values)
    key = ",".join(f"{a.digest}{a.scale}{a.target}" for a in adapters)
    return msgspec.structs.replace(one, adapters=adapters, batch_key=one.batch_key + key)


def latents(stepper: Stepper, name: str) -> np.ndarray:
    made: torch.Tensor = stepper.executor._sessions[name].latents
    return made.float().numpy().copy()


def alone(case: Case, where: Any, one: SampleSpec) -> np.ndarray:
    """Last latents of a sample from a model that has seen no other adapters."""
    stepper = Stepper(cases.loaded(where), Mesh.single(cases.CPU))
    stepper.begin(one)
    stepper.step(one.id, count=stepper.left(one.id))
    return latents(stepper, one.id)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_sample_has_the_bits_of_diffusers_with_its_adapters(
    case: Case, checkpoints: Checkpoints, loras: Files
) -> None:
    """And one without has those of a model that never saw any."""
    where = checkpoints.of(case)
    a, b = loras.adapter(case, "a", 0.7), loras.adapter(case, "b", -0.4)
    base = spec(case, where, "base")
    untouched = case.reference(where, base)
    stepper = Stepper(cases.loaded(where), Mesh.single(cases.CPU))
    for name, adapters in {"one": (a,), "two": (a, b), "base": ()}.items():
        one = spec(case, where, name, adapters)
        with upstream(adapters, twice="A14B" in case.name):
            expected = case.reference(where, one)
        stepper.begin(one)
        made = stepper.finish(one.id)
        assert np.array_equal(made, expected), name
        assert np.array_equal(made, untouched) is (not adapters)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_in_mixed_company_each_has_its_own(
    case: Case, checkpoints: Checkpoints, loras: Files, record_property: Any
) -> None:
    """Adapters, strengths and steps differ; samples join and leave, and some share forwards."""
    where = checkpoints.of(case)
    a, b = loras.adapter(case, "a"), loras.adapter(case, "b")
    weak = msgspec.structs.replace(a, scale=0.3)
    steps = int(case.values.get("num_inference_steps", 4))
    specs = {
        name: spec(case, where, name, adapters, seed=seed, num_inference_steps=steps + more)
        for seed, (name, adapters, more) in enumerate(
            (
                ("a", (a,), 0),
                ("mate", (a,), 1),
                ("b", (b,), 1),
                ("both", (a, b), 0),
                ("none", (), 0),
                ("weak", (weak,), 2),
            )
        )
    }
    stepper = Stepper(cases.loaded(where), Mesh.single(cases.CPU))
    last: dict[str, np.ndarray] = {}

    def turn(*names: str) -> None:
        ids = [f"{name}.0" for name in names if name not in last]
        stepper.step(*ids)
        for name in names:
            if name not in last and stepper.left(f"{name}.0") == 0:
                last[name] = latents(stepper, f"{name}.0")
                stepper.executor.release([f"{name}.0"])

    stepper.begin(specs["a"], specs["none"])
    turn("a")
    stepper.begin(specs["mate"], specs["b"])
    turn("none")
    turn("b")
    stepper.begin(specs["both"], specs["weak"])
    while len(last) < len(specs):
        for group in (["mate"] if "a" in last else ["a", "mate"], ["both"], ["none"], ["weak"]):
            if set(group) - last.keys():
                turn(*group)
        if "b" not in last:
            turn("b")
    worst = max(difference(last[name], alone(case, where, one)) for name, one in specs.items())
    record_property("worst", worst)
    assert worst <= LARGEST
