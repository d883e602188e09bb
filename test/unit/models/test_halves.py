"""Which forwards guidance takes, alone, in a batch and on two ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from safelight.models import halves
from safelight.models.halves import Order


class Half:
    """Guidance of one rank of two; the other computes the same of other words."""

    def __init__(self, unconditional: bool | None = None) -> None:
        self.split = unconditional is not None
        self.unconditional = bool(unconditional)

    def exchange(self, mine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (mine + 100, mine) if self.unconditional else (mine, mine + 100)


class Forwards:
    """Predictions [sessions, condition], and what they were asked for."""

    def __init__(self, as_rows: bool = False) -> None:
        self.calls: list[tuple[str, list[int], list[int]]] = []
        self._as_rows = as_rows

    def __call__(
        self, context: str, sessions: Sequence[int], texts: Sequence[int]
    ) -> torch.Tensor | list[torch.Tensor]:
        self.calls.append((context, list(sessions), list(texts)))
        made = [torch.tensor([float(s), float(t)]) for s, t in zip(sessions, texts, strict=True)]
        # Rows may be of any shape: the second session's is longer.
        rows = [row.repeat(s) for row, s in zip(made, sessions, strict=True)]
        return rows if self._as_rows else torch.stack(made)


def run(
    guidance: Any, negative: list[int | None], order: Order = "apart", as_rows: bool = False
) -> tuple[Forwards, list[Any], list[Any]]:
    forwards, sessions = Forwards(as_rows), list(range(1, len(negative) + 1))
    positive = [10 * s for s in sessions]
    noise, base = halves.both(guidance, forwards, sessions, positive, negative, order=order)
    flat = [n.flatten().tolist() for n in noise]
    return forwards, flat, [None if b is None else b.flatten().tolist() for b in base]


@pytest.mark.parametrize(
    ("negative", "order", "calls"),
    [
        ([None], "apart", [("cond", [1], [10])]),
        ([7], "apart", [("cond", [1], [10]), ("uncond", [1], [7])]),
        ([7], "positive first", [("batch", [1, 1], [10, 7])]),
        ([7], "negative first", [("batch", [1, 1], [7, 10])]),
        ([None, 8, None], "apart", [("batch", [1, 2, 3, 2], [10, 20, 30, 8])]),
        ([None, 8, None], "negative first", [("batch", [2, 1, 2, 3], [8, 10, 20, 30])]),
        ([None, None], "apart", [("batch", [1, 2], [10, 20])]),
    ],
)
def test_one_rank(negative: list[int | None], order: Order, calls: list[Any]) -> None:
    forwards, noise, base = run(Half(), negative, order)
    assert forwards.calls == calls
    assert noise == [[i, 10 * i] for i in range(1, len(negative) + 1)]
    assert base == [None if n is None else [i, n] for i, n in enumerate(negative, 1)]


@pytest.mark.parametrize("order", ["apart", "negative first"])
@pytest.mark.parametrize(
    ("unconditional", "negative", "call"),
    [
        (False, [7], ("cond", [1], [10])),
        (True, [7], ("uncond", [1], [7])),
        (False, [None, 8], ("batch", [1, 2], [10, 20])),
        (True, [None, 8], ("batch", [1, 2], [10, 8])),
    ],
)
def test_a_half_on_each_of_two_ranks(
    unconditional: bool, negative: list[int | None], call: Any, order: Order
) -> None:
    """The unguided ride along, and nobody looks at their other half."""
    forwards, noise, base = run(Half(unconditional), negative, order)
    assert forwards.calls == [call]
    mine, other = (base, noise) if unconditional else (noise, base)
    _, sessions, texts = call
    guided = [i for i, n in enumerate(negative) if n is not None]
    assert [mine[i] for i in guided] == [[sessions[i], texts[i]] for i in guided]
    assert [other[i] for i in guided] == [[sessions[i] + 100, texts[i] + 100] for i in guided]
    assert [b is None for b in base] == [n is None for n in negative]


def test_rows_of_different_shapes_come_back_in_theirs() -> None:
    _, noise, base = run(Half(False), [None, 8], as_rows=True)
    assert noise == [[1, 10], [2, 20, 2, 20]]
    assert base == [None, [102, 120, 102, 120]]


def test_only_the_guided_are_guided() -> None:
    made = halves.predict(Half(), Forwards(), [1, 2], [10, 20], [None, 8], [3.0, 3.0])
    assert [row.flatten().tolist() for row in made] == [[1, 10], [2, 8 + 3 * (20 - 8)]]
