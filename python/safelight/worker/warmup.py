"""A short warm-up: the first forwards are slow, and the cost model wants to know what they cost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from safelight.errors import InvalidRequest
from safelight.models.card import ModelCard
from safelight.request import Delivery, SampleSpec, Sampling
from safelight.wire.messages import Timing

if TYPE_CHECKING:
    from safelight.models.family import Family
    from safelight.parallel.mesh import Mesh

BATCHES = (1, 2, 4, 8)
CHEAP = 2_000
"""Tokens; a default size below it is warmed up too, a larger one would delay the start."""


@torch.inference_mode()
def warm_up(family: Family, card: ModelCard, mesh: Mesh) -> tuple[Timing, ...]:
    """Run a step of every kind at the smallest size, and at the default size if it is cheap."""
    sizes = [size for size in (_smallest(card), _default(card)) if size is not None]
    timings = [timing for size in sizes for timing in _time(family, card, mesh, size)]
    mesh.traffic.take()
    return tuple(timings)


def _smallest(card: ModelCard) -> Sampling | None:
    smallest = {name: getattr(card, name).min for name in ("width", "height", "num_frames")}
    try:
        return card.resolve({**smallest, "num_inference_steps": 2})
    except InvalidRequest:  # the ranks cannot share so few tokens
        return None


def _default(card: ModelCard) -> Sampling | None:
    try:
        default = card.resolve({"num_inference_steps": 2})
    except InvalidRequest:
        return None
    return default if card.tokens(default) <= CHEAP else None


def _time(family: Family, card: ModelCard, mesh: Mesh, sampling: Sampling) -> Iterator[Timing]:
    tokens = card.tokens(sampling)
    for size in BATCHES:
        # The first forward of a shape allocates; new prompts, because embeddings are cached.
        for kind in ("rehearsal", "warm-up"):
            specs = [_spec(sampling, f"{kind} {i} of {size}") for i in range(size)]
            timed = _rehearse(family, mesh, specs)
        for op, seconds in timed.items():
            yield Timing(op=op, tokens=tokens, batch=size, seconds=seconds)


def _rehearse(family: Family, mesh: Mesh, specs: list[SampleSpec]) -> dict[str, float]:
    """Seconds of an encode, a step and a decode of `specs`."""
    times = [_now()]
    sessions = [family.begin(spec, family.encode(spec)) for spec in specs]
    times.append(_now())
    family.step(sessions)
    times.append(_now())
    if mesh.rank == 0 or family.decodes_together(sessions):
        family.decode(sessions)
    times.append(_now())
    spans = [end - start for start, end in itertools.pairwise(times)]
    return dict(zip(("encode", "step", "decode"), spans, strict=True))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def _spec(sampling: Sampling, prompt: str) -> SampleSpec:
    return SampleSpec(
        id=prompt,
        attempt=0,
        prompt=prompt,
        sampling=sampling,
        priority=0,
        batch_key="",
        tokens=0,
        delivery=Delivery(path="", format="png", fps=1, compression=0, parameters={}),
    )
