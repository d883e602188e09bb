"""Writes the tables of `docs/communication.md`: formulas beside what real ranks counted.

Run in `test/`: `python -m tools.communication [--write]`. The rest of the page is written by hand.
"""

from __future__ import annotations

from fakes.ranks import RankPool, pool
from fakes.sequence_work import Case, Outcome, compare
from safelight.parallel.layout import Layout
from safelight.parallel.volume import Forward, sent
from tools import documents

NAME = "communication.md"

WAN_14B = Forward(tokens=21 * 45 * 80, layers=40, hidden=40 * 128, outputs=16 * 4)
"""81 frames of 1280×720: 21×90×160 latents, 1×2×2 of them a token; bfloat16."""
COUNTED = (
    Layout(ulysses=2),
    Layout(ulysses=4),
    Layout(ring=2),
    Layout(ring=4),
    Layout(ring=2, ulysses=2),
)
COMPUTED = (
    Layout(ulysses=8),
    Layout(ring=2, ulysses=4),
    Layout(ring=4, ulysses=2),
    Layout(ring=8),
    Layout(cfg=2, ulysses=4),
    Layout(cfg=2, ring=4),
)
GB = 1e9


def tiny(batch: int) -> Forward:
    """The tiny Wan of `fakes.transformers_zoo`, in float32."""
    return Forward(batch=batch, tokens=32, layers=2, hidden=48, outputs=16, itemsize=4)


def document(two: RankPool, four: RankPool) -> str:
    """The page with its tables made anew."""
    page = (documents.DOCS / NAME).read_text("utf-8")
    page = documents.between(page, "counted", counted_table(two, four))
    return documents.between(page, "computed", computed_table())


def counted_table(two: RankPool, four: RankPool) -> str:
    """Bytes by formula and as counted, of the tiny model."""
    rows = []
    for layout in COUNTED:
        ranks = two if layout.group_size == 2 else four
        cases = [Case(subject="Wan", layout=layout, batch=batch) for batch in (1, 2)]
        rows += _counted_rows(layout, ranks.run(compare, cases)[0])
    heading = ("layout", "collective", *(2 * ("formula", "counted")))
    return documents.table(heading, *rows)


def _counted_rows(layout: Layout, outcomes: list[Outcome]) -> list[tuple[str, ...]]:
    """Two columns a batch."""
    formulas = [sent(layout, tiny(batch)) for batch in (1, 2)]
    return [
        (
            _name(layout),
            f"`{collective}`",
            *(
                f"{nbytes:,}"
                for formula, outcome in zip(formulas, outcomes, strict=True)
                for nbytes in (formula[collective], outcome.sent.get(collective, 0))
            ),
        )
        for collective in formulas[0]
    ]


def computed_table() -> str:
    """Gigabytes a rank sends for Wan 14B, by layout of eight ranks."""
    heading = ("layout", "all-to-all", "keys and values", "output", "a forward", "a guided step")
    return documents.table(heading, *map(_computed_row, COMPUTED))


def _computed_row(layout: Layout) -> tuple[str, ...]:
    by_collective = sent(layout, WAN_14B)
    names = ("ulysses.all_to_all", "ring.all_gather", "sequence.all_gather")
    forward = sum(by_collective.values())
    prediction = WAN_14B.tokens * WAN_14B.outputs * WAN_14B.itemsize
    step = forward + prediction if layout.cfg == 2 else 2 * forward
    numbers = (*(by_collective.get(name, 0) for name in names), forward, step)
    return _name(layout), *(f"{number / GB:.2f}" for number in numbers)


def _name(layout: Layout) -> str:
    degrees = [("cfg", layout.cfg), ("ring", layout.ring), ("Ulysses", layout.ulysses)]
    return " × ".join(f"{axis} {degree}" for axis, degree in degrees if degree > 1)


def _main() -> None:
    with pool(2) as two, pool(4) as four:
        documents.main(NAME, lambda: document(two, four))


if __name__ == "__main__":
    _main()
