"""A short warm-up: the first forwards are slow, and the cost model wants to know what they cost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from safelight.models.card import ModelCard
from safelight.request import Delivery, SampleSpec, Sampling
from safelight.wire.messages import Timing

if TYPE_CHECKING:
    from safelight.models.family import Family

BATCHES = (1, 2, 4, 8)
CHEAP = 2_000
"""Tokens; a default size below it is warmed up too, a larger one would delay the start."""


@torch.inference_mode()
def warm_up(family: Family, card: ModelCard) -> tuple[Timing, ...]:
    """Run a step of every kind at the smallest size, and at the default size if it is cheap."""
    smallest = {name: getattr(card, name).min for name in ("width", "height", "num_frames")}
    sizes = [card.resolve({**smallest, "num_inference_steps": 2})]
    default = card.resolve({"num_inference_steps": 2})
    if card.tokens(default) <= CHEAP:
        sizes.append(default)
    return tuple(timing for sampling in sizes for timing in _time(family, card, sampling))


def _time(family: Family, card: ModelCard, sampling: Sampling) -> Iterator[Timing]:
    tokens = card.tokens(sampling)
    for size in BATCHES:
        # The first forward of a shape allocates; new prompts, because embeddings are cached.
        _rehearse(family, [_spec(sampling, f"rehearsal {i} of {size}") for i in range(size)])
        timed = _rehearse(family, [_spec(sampling, f"warm-up {i} of {size}") for i in range(size)])
        for op, seconds in timed.items():
            yield Timing(op=op, tokens=tokens, batch=size, seconds=seconds)


def _rehearse(family: Family, specs: list[SampleSpec]) -> dict[str, float]:
    """Seconds of an encode, a step and a decode of `specs`."""
    times = [_now()]
    sessions = [family.begin(spec, family.encode(spec)) for spec in specs]
    times.append(_now())
    family.step(sessions)
    times.append(_now())
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
