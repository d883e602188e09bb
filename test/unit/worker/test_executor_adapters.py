"""Which adapters are in force when, and when they are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch

from fakes.simulation import spec
from safelight.errors import GenerationFailed
from safelight.parallel.mesh import Mesh
from safelight.request import Adapter, SampleSpec
from safelight.wire.messages import Adapt, Decode, Encode, Step
from safelight.worker.executor import Executor

A, B, BAD = (Adapter(name=n, path=f"/{n}", digest=n * 4) for n in ("a", "b", "bad"))


@dataclass
class FakeSession:
    spec: SampleSpec
    latents: torch.Tensor
    index: int = 0
    steps: int = 2
    estimate: None = None


class FakeLora:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.worn: tuple[Any, ...] = ()
        self.dropped: list[str] = []
        self.asked = 0
        self.forgotten = 0

    def wear(self, adapters: Sequence[Adapter], *, merged: bool = False) -> None:
        self.asked += 1
        self.worn = tuple(one.name for one in adapters) + (("merged",) if merged else ())
        for one in adapters:
            self.load(one)

    def load(self, adapter: Adapter) -> dict[str, int]:
        if adapter is BAD:
            self.worn = ()
            raise GenerationFailed("It is bad.", code="adapter_unfit")
        return {"transformer": 3, adapter.name: 1}

    def forget_merged(self) -> None:
        self.forgotten += 1

    def drop(self, digest: str) -> None:
        self.dropped.append(digest)


class FakeFamily:
    """Remembers who was stepped under what."""

    def __init__(self) -> None:
        self.lora = FakeLora()
        self.log: list[tuple[str, tuple[Any, ...]]] = []

    def _note(self, op: str, *names: str) -> None:
        self.log.append((f"{op} {' '.join(names)}", self.lora.worn))

    def encode(self, sample: SampleSpec) -> None:
        self._note("encode", sample.id)

    def begin(self, sample: SampleSpec, conditioning: None) -> FakeSession:
        return FakeSession(sample, torch.zeros(1))

    def step(self, batch: Sequence[FakeSession]) -> None:
        self._note("step", *(session.spec.id for session in batch))
        for session in batch:
            session.index += 1

    def decodes_together(self, sessions: Sequence[FakeSession]) -> bool:
        return False

    def decode(self, sessions: Sequence[FakeSession]) -> list[np.ndarray]:
        self._note("decode", *(session.spec.id for session in sessions))
        return [np.zeros((1, 2, 2, 3), np.uint8) for _ in sessions]


def with_adapters(name: str, *adapters: Adapter, merged: bool = False) -> SampleSpec:
    return msgspec.structs.replace(spec(name, steps=2), adapters=adapters, merged=merged)


def executor() -> tuple[Executor, FakeFamily]:
    family = FakeFamily()
    mesh = Mesh.single(torch.device("cpu"))
    return Executor(family, mesh, lambda s, f: None), family  # type: ignore[arg-type]


def begun(*specs: SampleSpec) -> tuple[Executor, FakeFamily]:
    one, family = executor()
    assert one.execute(Encode(seq=1, release=(), samples=specs)) == ()
    return one, family


def test_every_forward_has_the_samples_adapters_and_no_others() -> None:
    one, family = begun(
        with_adapters("a.0", A),
        with_adapters("both.0", A, B, merged=True),
        with_adapters("none.0"),
    )
    for names in (("a.0",), ("none.0",), ("both.0",)):
        one.execute(Step(seq=2, release=(), samples=names))
    one.execute(Decode(seq=3, release=(), samples=("none.0",)))
    expected = {"a.0": ("a",), "both.0": ("a", "b", "merged"), "none.0": ()}
    assert len(family.log) == 7
    assert all(worn == expected[what.split()[1]] for what, worn in family.log)


def test_samples_that_differ_share_no_forward_even_if_told_so() -> None:
    one, family = begun(with_adapters("a.0", A), with_adapters("b.0", A), with_adapters("c.0"))
    assert one.execute(Step(seq=2, release=(), samples=("a.0", "b.0", "c.0"))) == ()
    assert family.log[-2:] == [("step a.0 b.0", ("a",)), ("step c.0", ())]


def test_a_family_is_not_asked_before_anybody_has_adapters() -> None:
    """One of somebody else's may know nothing of them."""
    one, family = begun(with_adapters("a.0"))
    one.execute(Step(seq=2, release=(), samples=("a.0",)))
    assert family.lora.asked == 0


def test_a_sample_whose_adapter_does_not_fit_fails_alone() -> None:
    one, _ = executor()
    samples = (with_adapters("a.0", BAD), with_adapters("b.0"))
    (failure,) = one.execute(Encode(seq=1, release=(), samples=samples))
    assert (failure.sample, failure.code) == ("a.0", "adapter_unfit")
    assert failure.message == "It is bad."
    assert one.samples == ["b.0"]


def test_adapters_are_tried_and_counted() -> None:
    one, _ = executor()
    failures = one.execute(Adapt(seq=1, release=(), load=(A, BAD, B)))
    assert [(f.sample, f.message) for f in failures] == [(BAD.digest, "It is bad.")]
    assert one.layers == {"transformer": 6, "a": 1, "b": 1}
    assert one.adapting > 0
    one.execute(Step(seq=2, release=(), samples=()))
    assert one.layers == {}


def test_adapters_are_dropped_when_no_sample_has_them() -> None:
    one, family = begun(with_adapters("a.0", A), with_adapters("b.0", A))
    one.execute(Adapt(seq=2, release=(), drop=(A.digest, B.digest)))
    assert family.lora.dropped == [B.digest]
    one.release(["a.0"])
    assert family.lora.dropped == [B.digest]
    one.release(["b.0"])
    assert family.lora.dropped == [B.digest, A.digest]
    one.release(["b.0"])
    assert len(family.lora.dropped) == 2


def test_merged_weights_are_kept_for_those_that_have_them() -> None:
    one, family = begun(with_adapters("a.0", A, merged=True))
    one.execute(Encode(seq=2, release=(), samples=(with_adapters("b.0"),)))
    one.release(["a.0", "b.0"])
    one.execute(Encode(seq=3, release=(), samples=(with_adapters("c.0", A, merged=True),)))
    one.release(["c.0"])
    assert family.lora.forgotten == 0
    one.execute(Encode(seq=4, release=(), samples=(with_adapters("d.0", A),)))
    assert family.lora.forgotten == 1


def test_an_adapter_that_is_used_again_stays() -> None:
    one, family = begun(with_adapters("a.0", A))
    one.execute(Adapt(seq=2, release=(), drop=(A.digest,)))
    one.execute(Encode(seq=3, release=(), samples=(with_adapters("b.0", A),)))
    one.release(["a.0", "b.0"])
    assert family.lora.dropped == []
