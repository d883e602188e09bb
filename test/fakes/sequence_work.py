"""Sequence parallelism on real ranks: what N ranks make of a transformer, compared with one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import msgspec
import torch

from fakes import transformers_zoo as zoo
from safelight.errors import ConfigError, GenerationFailed
from safelight.models.plans import plan_of
from safelight.parallel.layout import Layout
from safelight.parallel.mesh import Mesh
from safelight.parallel.sequence import SequenceParallel

CPU = torch.device("cpu")


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One forward in one layout."""

    subject: str
    layout: Layout
    batch: int = 1
    even: bool = True


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it on one rank."""

    difference: float | None = None
    """Largest, from one rank alone; None if it was refused."""
    refusal: str = ""
    sent: dict[str, int] = {}
    """Bytes, as `Traffic.take`."""
    collectives: int = 0


@cache
def mesh_of(layout: Layout) -> Mesh:
    """Meshes are kept, as every one makes process groups."""
    return Mesh.create(layout, CPU)


@torch.inference_mode()
def compare(rank: int, cases: Sequence[Case]) -> list[Outcome]:
    """Every case on this rank. The halves of a `cfg` layout have different inputs."""
    return [_compare(case) for case in cases]


@cache
def _alone(
    subject: str, batch: int, even: bool, seed: int
) -> tuple[zoo.Inputs, tuple[int, ...], torch.Tensor]:
    """Inputs, their lengths, and what one rank makes of them."""
    inputs, lengths = zoo.feed(subject, batch, even, seed)
    return inputs, lengths, zoo.output(zoo.build(subject), inputs)


def _compare(case: Case) -> Outcome:
    mesh = mesh_of(case.layout)
    inputs, lengths, expected = _alone(case.subject, case.batch, case.even, mesh.index("cfg"))
    transformer = zoo.build(case.subject)
    mesh.traffic.take()
    before = mesh.traffic.collectives
    try:
        plan = plan_of(type(transformer).__name__)
        sequence = SequenceParallel.apply(transformer, mesh, plan)
        sequence.prepare(*lengths)
        found = zoo.output(transformer, inputs)
    except (ConfigError, GenerationFailed) as failure:
        return Outcome(refusal=str(failure), collectives=mesh.traffic.collectives - before)
    return Outcome(
        difference=float((found - expected).abs().max()),
        sent=mesh.traffic.take(),
        collectives=mesh.traffic.collectives - before,
    )


@torch.inference_mode()
def alternate(rank: int, layout: Layout) -> list[float]:
    """Differences of forwards with uneven, even and again uneven lengths, on one transformer."""
    mesh = mesh_of(layout)
    transformer, alone = zoo.build("Wan"), zoo.build("Wan")
    sequence = SequenceParallel.apply(transformer, mesh, plan_of("WanTransformer3DModel"))
    differences = []
    for even in (False, True, False):
        inputs, lengths = zoo.feed("Wan", 1, even, seed=0)
        sequence.prepare(*lengths)
        found = zoo.output(transformer, inputs)
        differences.append(float((found - zoo.output(alone, inputs)).abs().max()))
    return differences


def twice(rank: int, layout: Layout) -> str:
    """What is said to splitting one transformer again."""
    transformer = zoo.build("Wan")
    SequenceParallel.apply(transformer, mesh_of(layout))
    try:
        SequenceParallel.apply(transformer, mesh_of(layout))
    except ConfigError as failure:
        return str(failure)
    return "nothing"
