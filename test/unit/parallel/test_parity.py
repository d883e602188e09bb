"""N ranks against one, for every model and layout: the gate, and the page that states it."""

from __future__ import annotations

import pytest

from fakes.parity import fail_after
from fakes.ranks import RankPool
from tools import documents, parity, parity_parts
from tools.bounds import LARGEST, bound


@pytest.fixture(scope="module")
def made(
    two_ranks: RankPool, four_ranks: RankPool, tmp_path_factory: pytest.TempPathFactory
) -> parity.Ranks:
    return parity.Ranks(tmp_path_factory.mktemp("models"), {2: two_ranks, 4: four_ranks})


@pytest.mark.parametrize("together", [False, True], ids=["alone", "batched"])
@pytest.mark.parametrize("layout", parity.LAYOUTS)
@pytest.mark.parametrize("model", parity.MODELS)
def test_the_cell_of_the_table(made: parity.Ranks, model: str, layout: str, together: bool) -> None:
    page = (documents.DOCS / parity.NAME).read_text("utf-8")
    said = parity.said(page, model, parity.row(layout, together))
    found = made.cell(model, layout, together)
    if not parity.holds(found, said):
        found = made.cell(model, layout, together)  # see below
    assert max(found.latents, found.frames) <= LARGEST
    assert parity.holds(found, said), f"{found} is not '{said}': make parity"


@pytest.mark.parametrize("layout", ["all on 4", "ring, all on 4"])
def test_ranks_still_agree_on_how_far_they_are(
    made: parity.Ranks, four_ranks: RankPool, layout: str
) -> None:
    """Whatever their place in the layout: else the next bad sample would end the group."""
    spec = made.requests("`builtin:shapes`")[0][0]
    said = four_ranks.run(fail_after, parity.LAYOUTS[layout], spec)
    assert said == ["agreed"] * 4


@pytest.mark.parametrize("section", parity_parts.SECTIONS)
def test_the_parts(section: str, two_ranks: RankPool, four_ranks: RankPool) -> None:
    page = (documents.DOCS / parity.NAME).read_text("utf-8")
    measure, headings = parity_parts.SECTIONS[section]
    heading, *rows = documents.cells(page, section)
    assert tuple(heading) == headings
    pools = {2: two_ranks, 4: four_ranks}
    wrong = parity_parts.differs(measure(pools), rows)
    if wrong:
        # A matrix product may take another path where memory happens to lie otherwise, once in a
        # great while. What is wrong is wrong the second time too.
        again = parity_parts.differs(measure(pools), rows)
        wrong = {cell: text for cell, text in again.items() if cell in wrong}
    assert wrong == {}, "make parity"


def test_the_comparison_of_parts_itself() -> None:
    table = {("Wan", "ring 2"): (3e-7, "refused: no"), ("Flux", "ring 2"): (0.0, 1e-7)}
    fine = [["Wan", "ring 2", "≤ 5e-7", "refused: no"], ["Flux", "ring 2", "0", "≤ 2e-7"]]
    assert parity_parts.differs(table, fine) == {}
    assert len(parity_parts.differs(table, fine[:1])) == 2
    assert len(parity_parts.differs(table, [*fine, ["SD3", "ring 2", "0", "0"]])) == 1
    wrong = [["Wan", "ring 2", "0", "refused: yes"], ["Flux", "ring 2", "≤ 1e-7", "≤ 1e-3"]]
    assert len(parity_parts.differs(table, wrong)) == 4


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
    assert bound(value) == text
