"""N ranks against one, for every model and layout: the gate, and the page that states it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes.parity import forget
from fakes.ranks import RankPool
from tools import documents, parity


@pytest.fixture(scope="module")
def made(
    two_ranks: RankPool, four_ranks: RankPool, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[parity.Ranks]:
    yield parity.Ranks(tmp_path_factory.mktemp("models"), {2: two_ranks, 4: four_ranks})
    for pool in (two_ranks, four_ranks):
        pool.run(forget)


@pytest.mark.parametrize("together", [False, True], ids=["alone", "batched"])
@pytest.mark.parametrize("layout", parity.LAYOUTS)
@pytest.mark.parametrize("model", parity.MODELS)
def test_the_cell_of_the_table(made: parity.Ranks, model: str, layout: str, together: bool) -> None:
    page = (documents.DOCS / parity.NAME).read_text("utf-8")
    found = made.cell(model, layout, together)
    said = parity.said(page, model, parity.row(layout, together))
    assert max(found.latents, found.frames) <= parity.LARGEST
    assert parity.holds(found, said), f"{found} is not '{said}': make parity"


@pytest.mark.parametrize(
    ("cell", "text", "fine"),
    [
        (parity.Cell(0.0, 3e-6), "0 / ≤ 5e-6", True),
        (parity.Cell(0.0, 3e-6), "0 / 0", False),
        (parity.Cell(1e-9, 0.0), "0 / 0", False),
        (parity.Cell(0.0, 3e-6), "0 / ≤ 2e-6", False),
        (parity.Cell(0.0, 3e-6), "0 / ≤ 1e-3", False),
        (parity.Cell(0.0, 1e-8), "0 / ≤ 5e-5", False),
        (parity.Cell(refusal="no"), "no", True),
        (parity.Cell(refusal="no"), "0 / 0", False),
    ],
)
def test_the_comparison_itself(cell: parity.Cell, text: str, fine: bool) -> None:
    assert parity.holds(cell, text) is fine


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (3.6e-7, "≤ 1e-6"), (1.07e-5, "≤ 2e-5")])
def test_bounds_are_rounded_up(value: float, text: str) -> None:
    assert parity.bound(value) == text
