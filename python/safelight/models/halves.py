"""Classifier-free guidance of a batch in which some are guided and some are not.

One sample alone runs its halves as its pipeline does, for their bits: apart, or in one forward, in
either order. In a larger batch all halves of all samples ride in one forward. With CFG parallelism
the halves are on different ranks. Used by every native family whose guidance is of this kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar

import torch

from safelight.parallel.guidance import Guidance

S = TypeVar("S")
C = TypeVar("C")

Order = Literal["apart", "positive first", "negative first"]
"""How a pipeline runs the halves of one sample: in two forwards, or as rows of one."""

Rows = torch.Tensor | Sequence[torch.Tensor]
"""Predictions, [rows, ...], or one a row: then of any shapes."""

Forward = Callable[[str, Sequence[S], Sequence[C]], Rows]
"""One forward with a row for each session and what it is conditioned on: cache context, sessions,
conditions -> predictions."""

Halves = tuple[Sequence[torch.Tensor], Sequence[torch.Tensor | None]]
"""Conditional and unconditional predictions, one a session, [1, ...] each unless the forward gave
single rows; the latter None for those that are not guided."""


class Guided(Protocol):
    """A session that takes its step with one prediction."""

    @property
    def conditioning(self) -> Any:
        """Has `positive` and `negative`; the latter None without guidance."""
        ...

    def advance(self, noise: torch.Tensor, /) -> None: ...


def step(
    guidance: Guidance,
    forward: Forward[Any, Any],
    batch: Sequence[Guided],
    scales: Sequence[float],
    *,
    order: Order = "apart",
) -> None:
    """One denoising step of every session, with its guided prediction."""
    texts = texts_of(batch)
    predictions = predict(guidance, forward, batch, *texts, scales, order=order)
    for session, noise in zip(batch, predictions, strict=True):
        session.advance(noise)


def texts_of(batch: Sequence[Guided]) -> tuple[list[Any], list[Any]]:
    """What the sessions are conditioned on, by half."""
    conditionings = [session.conditioning for session in batch]
    return [c.positive for c in conditionings], [c.negative for c in conditionings]


def predict(
    guidance: Guidance,
    forward: Forward[S, C],
    batch: Sequence[S],
    positive: Sequence[C],
    negative: Sequence[C | None],
    scales: Sequence[float],
    *,
    order: Order = "apart",
) -> list[torch.Tensor]:
    """The guided prediction of every session.

    `negative` is None for those that are not guided, whose scale is then not looked at.
    """
    noise, base = both(guidance, forward, batch, positive, negative, order=order)
    return [
        n if b is None else b + scale * (n - b)
        for n, b, scale in zip(noise, base, scales, strict=True)
    ]


def both(
    guidance: Guidance,
    forward: Forward[S, C],
    batch: Sequence[S],
    positive: Sequence[C],
    negative: Sequence[C | None],
    *,
    order: Order = "apart",
) -> Halves:
    """Both predictions of every session, for those who guide in another way than `predict`."""
    alone = len(batch) == 1
    if all(n is None for n in negative):
        return _rows(forward("cond" if alone else "batch", batch, positive)), [None] * len(batch)
    if guidance.split:
        return _on_two(guidance, forward, batch, positive, negative)
    guided = [s for s, n in zip(batch, negative, strict=True) if n is not None]
    others = [n for n in negative if n is not None]
    if alone and order == "apart":
        noise = _rows(forward("cond", batch, positive))
        base = _rows(forward("uncond", guided, others))
    elif order == "negative first":
        rows = _rows(forward("batch", [*guided, *batch], [*others, *positive]))
        base, noise = rows[: len(guided)], rows[len(guided) :]
    else:
        rows = _rows(forward("batch", [*batch, *guided], [*positive, *others]))
        noise, base = rows[: len(batch)], rows[len(batch) :]
    rest = iter(base)
    return noise, [None if n is None else next(rest) for n in negative]


def _on_two(
    guidance: Guidance,
    forward: Forward[S, C],
    batch: Sequence[S],
    positive: Sequence[C],
    negative: Sequence[C | None],
) -> Halves:
    name, mine = "cond", positive
    if guidance.unconditional:
        # The unguided ride along in the other half, as both must have one shape to be exchanged;
        # nobody looks at them there.
        name = "uncond"
        mine = [p if n is None else n for p, n in zip(positive, negative, strict=True)]
    made = _rows(forward(name if len(batch) == 1 else "batch", batch, mine))
    noise, base = _exchange(guidance, made)
    return noise, [None if n is None else b for b, n in zip(base, negative, strict=True)]


def _rows(made: Rows) -> Sequence[torch.Tensor]:
    return made.split(1) if isinstance(made, torch.Tensor) else made


def _exchange(
    guidance: Guidance, mine: Sequence[torch.Tensor]
) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
    """(conditional, unconditional) rows; flat on the way, whatever their shapes."""
    conditional, unconditional = guidance.exchange(torch.cat([row.flatten() for row in mine]))
    return _shaped(conditional, mine), _shaped(unconditional, mine)


def _shaped(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    parts = flat.split([row.numel() for row in like])
    return [part.view_as(row) for part, row in zip(parts, like, strict=True)]
