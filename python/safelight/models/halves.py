"""Classifier-free guidance of a batch in which some are guided and some are not.

One sample alone runs its halves apart, as the pipelines do, for their bits. In a larger batch all
halves of all samples ride in one forward. With CFG parallelism the halves are on different ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from safelight.parallel.guidance import Guidance

S = TypeVar("S")
C = TypeVar("C")

Forward = Callable[[str, Sequence[S], Sequence[C]], torch.Tensor]
"""One forward with a row for each session and what it is conditioned on: cache context, sessions,
conditions -> predictions, [rows, ...]."""


def predict(
    guidance: Guidance,
    forward: Forward[S, C],
    batch: Sequence[S],
    positive: Sequence[C],
    negative: Sequence[C | None],
    scales: Sequence[float],
) -> list[torch.Tensor]:
    """The guided prediction of every session, [1, ...] each.

    `negative` is None for those that are not guided, whose scale is then not looked at.
    """
    run = _alone if len(batch) == 1 else _together
    noise, base = run(guidance, forward, batch, positive, negative)
    return [
        n if b is None else b + scale * (n - b)
        for n, b, scale in zip(noise, base, scales, strict=True)
    ]


Halves = tuple[Sequence[torch.Tensor], Sequence[torch.Tensor | None]]
"""Conditional and unconditional predictions; the latter None for those that are not guided."""


def _alone(
    guidance: Guidance,
    forward: Forward[S, C],
    batch: Sequence[S],
    positive: Sequence[C],
    negative: Sequence[C | None],
) -> Halves:
    guided = [n for n in negative if n is not None]
    if not guided:
        return [forward("cond", batch, positive)], [None]
    if guidance.split:
        name, mine = ("uncond", guided) if guidance.unconditional else ("cond", positive)
        noise, base = guidance.exchange(forward(name, batch, mine))
        return [noise], [base]
    noise = forward("cond", batch, positive)
    return [noise], [forward("uncond", batch, guided)]


def _together(
    guidance: Guidance,
    forward: Forward[S, C],
    batch: Sequence[S],
    positive: Sequence[C],
    negative: Sequence[C | None],
) -> Halves:
    guided = [n is not None for n in negative]
    if guidance.split and any(guided):
        # The unguided ride along in the other half, as both must have one shape to be exchanged;
        # nobody looks at them there.
        other = [p if n is None else n for p, n in zip(positive, negative, strict=True)]
        mine = forward("batch", batch, other if guidance.unconditional else positive)
        noise, base = (half.split(1) for half in guidance.exchange(mine))
        return noise, [b if g else None for b, g in zip(base, guided, strict=True)]
    sessions = [*batch, *(s for s, g in zip(batch, guided, strict=True) if g)]
    conditions = [*positive, *(n for n in negative if n is not None)]
    rows = forward("batch", sessions, conditions).split(1)
    rest = iter(rows[len(batch) :])
    return rows[: len(batch)], [next(rest) if g else None for g in guided]
