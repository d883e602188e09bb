"""Fidelity of every pipeline and task: the gate, and the table that states it.

One rank alone gives the bits of the diffusers pipeline; batched, resumed from preemption and on two
ranks it stays within what `docs/numerics.md` says.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes.cases import Case, Checkpoints
from fakes.pipelines import CASES
from fakes.ranks import RankPool
from tools import documents, parity, pipelines

FRESH_RANKS_EVERY = 8
"""Cases: every mesh that was made has process groups whose threads take turns with the work."""


@pytest.fixture
def ranks(two_ranks: RankPool, request: pytest.FixtureRequest) -> Iterator[RankPool]:
    yield two_ranks
    index = request.node.callspec.indices["case"]
    if index % FRESH_RANKS_EVERY == FRESH_RANKS_EVERY - 1 or index == len(CASES) - 1:
        two_ranks.close()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_row_of_the_table(case: Case, ranks: RankPool, checkpoints: Checkpoints) -> None:
    row = pipelines.measure(case, checkpoints.of(case), ranks)
    assert pipelines.complaint(row, said(case)) == ""


def said(case: Case) -> list[str] | None:
    """The page's row of a case."""
    page = (documents.DOCS / parity.NAME).read_text("utf-8")
    _, *rows = documents.cells(page, "pipelines")
    return next((row for row in rows if row[:2] == [case.name, case.task]), None)


def test_every_row_of_the_table_is_measured() -> None:
    page = (documents.DOCS / parity.NAME).read_text("utf-8")
    heading, *rows = documents.cells(page, "pipelines")
    assert tuple(heading) == pipelines.HEADINGS
    assert [tuple(row[:2]) for row in rows] == [(case.name, case.task) for case in CASES]
