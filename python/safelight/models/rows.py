"""The conditional and the unconditional predictions of a batch whose rows are of any shapes.

As `halves` for models that have both halves of one sample in one forward, or whose forwards take
lists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from safelight.parallel.guidance import Guidance

Rows = Sequence[torch.Tensor]
"""One prediction a row; they may be of different shapes."""


def predict(
    guidance: Guidance,
    batch: Sequence[Any],
    forward: Callable[[Sequence[Any], Sequence[Any]], Rows],
    *,
    unconditional_first: bool,
) -> tuple[Rows, Sequence[torch.Tensor | None]]:
    """Both predictions of each session; the unconditional one is None for the unguided.

    A session's `conditioning` has `positive` and `negative`, None without guidance.
    `forward(sessions, texts)` is one forward with a row for each session and its text. Where one
    rank has both halves they ride in one, in the order in which the pipeline has them, for its
    bits.
    """
    positive = [session.conditioning.positive for session in batch]
    guided = [session for session in batch if _guided(session)]
    if guidance.split and guided:
        # The unguided ride along in the other half, as both must have one shape to be exchanged;
        # nobody looks at them there.
        texts = [_other(session) for session in batch] if guidance.unconditional else positive
        noise, base = _exchange(guidance, forward(batch, texts))
        return noise, [base[i] if _guided(session) else None for i, session in enumerate(batch)]
    negative = [session.conditioning.negative for session in guided]
    if unconditional_first:
        rows = forward([*guided, *batch], [*negative, *positive])
        base, noise = rows[: len(guided)], rows[len(guided) :]
    else:
        rows = forward([*batch, *guided], [*positive, *negative])
        noise, base = rows[: len(batch)], rows[len(batch) :]
    rest = iter(base)
    return noise, [next(rest) if _guided(session) else None for session in batch]


def _guided(session: Any) -> bool:
    return session.conditioning.negative is not None


def _other(session: Any) -> Any:
    conditioning = session.conditioning
    return conditioning.negative if _guided(session) else conditioning.positive


def _exchange(guidance: Guidance, mine: Rows) -> tuple[Rows, Rows]:
    """(conditional, unconditional) rows; flat on the way, whatever their shapes."""
    flat = torch.cat([row.flatten() for row in mine])
    conditional, unconditional = guidance.exchange(flat)
    return _shaped(conditional, mine), _shaped(unconditional, mine)


def _shaped(flat: torch.Tensor, like: Rows) -> Rows:
    parts = flat.split([row.numel() for row in like])
    return [part.view_as(row) for part, row in zip(parts, like, strict=True)]
