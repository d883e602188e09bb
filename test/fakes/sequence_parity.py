"""What splitting the sequence changes, for every transformer and layout: rows of a table."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from fakes import transformers_zoo as zoo
from fakes.ranks import RankPool
from fakes.sequence_work import Case, Outcome, compare
from safelight.parallel.layout import Layout

LAYOUTS = (
    Layout(ulysses=2),
    Layout(ring=2),
    Layout(ulysses=4),
    Layout(ring=4),
    Layout(ring=2, ulysses=2),
    Layout(cfg=2, ulysses=2),
)
"""Each has two or four ranks."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One transformer in one layout."""

    transformer: str
    layout: Layout
    even: bool
    """Whether the tokens divide by the ranks."""
    difference: float | None
    """Largest absolute one of one forward from one rank's, over batches of one and two, in fp32;
    outputs are about 1. None if it is refused."""
    refusal: str = ""


def sequence_parity(two: RankPool, four: RankPool) -> list[Row]:
    """Every transformer of the zoo in every layout; seconds on pools of two and four ranks.

    Raises `AssertionError` if ranks disagree on what is refused, or on how far they came.
    """
    cases = [case for variants in _variants() for case in variants]
    outcomes: dict[Case, tuple[Outcome, ...]] = {}
    for pool in (two, four):
        own = [case for case in cases if case.layout.group_size == pool.size]
        outcomes |= dict(zip(own, zip(*pool.run(compare, own), strict=True), strict=True))
    return [_row(variants, outcomes) for variants in _variants()]


def _variants() -> Iterator[list[Case]]:
    """The cases of every row."""
    for layout in LAYOUTS:
        for name, subject in zoo.SUBJECTS.items():
            for even in (True,) if subject.padded else (True, False):
                yield [
                    Case(subject=name, layout=layout, batch=batch, even=even)
                    for batch in range(subject.least, 3)
                ]


def _row(variants: list[Case], outcomes: dict[Case, tuple[Outcome, ...]]) -> Row:
    for case in variants:
        ends = {(outcome.refusal, outcome.collectives) for outcome in outcomes[case]}
        assert len(ends) == 1, f"{case}: {ends}"
    found = [outcome for case in variants for outcome in outcomes[case]]
    differences = [o.difference for o in found if o.difference is not None]
    return Row(
        transformer=variants[0].subject,
        layout=variants[0].layout,
        even=variants[0].even,
        difference=max(differences, default=None),
        refusal=found[0].refusal,
    )
