"""The executor against a family that fails on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fakes.simulation import spec
from safelight.models.prompts import PromptCache
from safelight.parallel.layout import Layout
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec
from safelight.wire.messages import Decode, Drop, Encode, Step
from safelight.worker.executor import Executor
from safelight.worker.memory import SharedArray

MESH = Mesh.single(torch.device("cpu"))


@dataclass
class FakeSession:
    spec: SampleSpec
    latents: torch.Tensor
    index: int = 0
    steps: int = 2


class FakeFamily:
    """Latents count steps. `poison` maps a sample to where and how it fails."""

    def __init__(self, poison: dict[str, tuple[str, BaseException]]) -> None:
        self.poison = poison
        self.forwards = 0

    def describe(self) -> str:
        return "fake"

    def _maybe_fail(self, op: str, sample: str) -> None:
        where, error = self.poison.get(sample, ("", None))
        if where == op and error is not None:
            raise error

    def encode(self, sample: SampleSpec) -> Any:
        self._maybe_fail("encode", sample.id)
        return None

    def begin(self, sample: SampleSpec, conditioning: Any) -> FakeSession:
        return FakeSession(sample, torch.zeros(1))

    def step(self, batch: Sequence[FakeSession]) -> None:
        self.forwards += 1
        for session in batch:  # those before the bad one get their step
            self._maybe_fail("step", session.spec.id)
            session.latents = session.latents + 1
            session.index += 1

    def decodes_together(self, sessions: Sequence[FakeSession]) -> bool:
        return len(sessions[0].latents) > 1  # as by their shape

    def weights(self) -> dict[str, int]:
        return {}

    def decode(self, sessions: Sequence[FakeSession]) -> list[np.ndarray]:
        for session in sessions:
            self._maybe_fail("decode", session.spec.id)
        return [np.full((1, 2, 2, 3), int(s.latents), np.uint8) for s in sessions]


def run(poison: dict[str, tuple[str, BaseException]]) -> tuple[dict[str, str], dict[str, int]]:
    """Three samples of two steps through an executor: (failure codes, delivered values)."""
    delivered: dict[str, int] = {}
    executor = Executor(
        FakeFamily(poison), MESH, lambda s, frames: delivered.update({s.id: int(frames.flat[0])})
    )
    names = ("a.0", "b.0", "c.0")
    plans = [
        Encode(seq=1, release=(), samples=tuple(spec(n, steps=2) for n in names)),
        Step(seq=2, release=(), samples=names),
        Step(seq=3, release=(), samples=names),
        Decode(seq=4, release=(), samples=names),
    ]
    failures: dict[str, str] = {}
    for plan in plans:
        for failure in executor.execute(plan):
            if failures.setdefault(failure.sample, failure.code) != failure.code:
                assert failure.code == "not_held"  # it had failed before
    assert set(executor.samples) == set(names) - set(failures)
    return failures, delivered


def test_all_go_well() -> None:
    assert run({}) == ({}, {"a.0": 2, "b.0": 2, "c.0": 2})


@pytest.mark.parametrize("op", ["encode", "step", "decode"])
@pytest.mark.parametrize("error", [ValueError("no"), IndexError("no"), AssertionError("no")])
def test_one_fails_alone_and_nobody_gets_a_step_twice(op: str, error: BaseException) -> None:
    failures, delivered = run({"b.0": (op, error)})
    assert failures == {"b.0": "generation_failed"}
    assert delivered == {"a.0": 2, "c.0": 2}


def test_nobody_is_delivered_twice_when_a_batch_mates_delivery_fails() -> None:
    delivered: list[str] = []

    def deliver(sample: SampleSpec, frames: np.ndarray) -> None:
        delivered.append(sample.id)
        if sample.id == "b.0":
            raise OSError("no memory")

    executor = Executor(FakeFamily({}), MESH, deliver)
    names = ("a.0", "b.0", "c.0")
    executor.execute(Encode(seq=1, release=(), samples=tuple(spec(n) for n in names)))
    (failure,) = executor.execute(Decode(seq=2, release=(), samples=names))
    assert failure.sample == "b.0"
    assert delivered == ["a.0", "b.0", "c.0"]


def test_a_rank_beyond_the_first_decodes_nothing_that_is_not_split() -> None:
    second = Mesh(Layout(ulysses=2), 1, torch.device("cpu"))
    executor = Executor(FakeFamily({}), second, lambda s, frames: pytest.fail("delivered"))
    executor._sessions["a.0"] = FakeSession(spec("a.0"), torch.tensor([float("nan")]))
    assert executor.execute(Decode(seq=1, release=(), samples=("a.0",))) == ()


def test_running_out_of_memory_has_its_own_code() -> None:
    failures, _ = run({"b.0": ("step", torch.OutOfMemoryError("CUDA out of memory"))})
    assert failures == {"b.0": "out_of_memory"}


def test_what_is_not_the_samples_fault_ends_the_rank() -> None:
    with pytest.raises(KeyboardInterrupt):
        run({"b.0": ("step", KeyboardInterrupt())})


def test_latents_that_are_not_finite_are_an_error_not_a_picture() -> None:
    family = FakeFamily({})
    executor = Executor(family, MESH, lambda s, frames: pytest.fail("delivered"))
    executor.execute(Encode(seq=1, release=(), samples=(spec("a.0"),)))
    executor._sessions["a.0"].latents = torch.tensor([float("nan")])
    (failure,) = executor.execute(Decode(seq=2, release=(), samples=("a.0",)))
    assert failure.code == "non_finite"


def test_a_sample_it_does_not_hold_is_never_reported_as_done() -> None:
    family = FakeFamily({})
    executor = Executor(family, MESH, lambda s, frames: pytest.fail("delivered"))
    for plan in (
        Step(seq=1, release=(), samples=("gone.0",)),
        Decode(seq=2, release=(), samples=("gone.0",)),
    ):
        (failure,) = executor.execute(plan)
        assert (failure.sample, failure.code) == ("gone.0", "not_held")
    executor.release(("gone.0",))
    assert family.forwards == 0


def test_shared_frames_are_readable_by_path_until_closed() -> None:
    frames = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    shared = SharedArray("a.0", frames)
    path = shared.path
    with open(path, "rb") as memory:
        assert memory.read() == frames.tobytes()
    shared.close()
    with pytest.raises(FileNotFoundError):
        Path(path).read_bytes()


def test_only_a_drop_that_says_so_empties_the_caches() -> None:
    cache = PromptCache(4)
    executor = Executor(FakeFamily({}), MESH, lambda spec, frames: None)
    computed: list[str] = []

    def ask() -> None:
        cache.get("a cat", lambda: computed.append("a cat"))

    ask()
    assert executor.execute(Drop(seq=1, release=())) == ()
    ask()
    assert len(computed) == 1
    assert executor.execute(Drop(seq=2, release=(), caches=True)) == ()
    ask()
    assert len(computed) == 2
