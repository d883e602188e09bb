"""The formulas for what ranks send say what is sent."""

from __future__ import annotations

import pytest

from fakes.ranks import RankPool
from fakes.sequence_work import Case, compare
from safelight.parallel.layout import Layout
from safelight.parallel.volume import Forward, sent
from tools import communication, documents


@pytest.mark.parametrize(
    "layout",
    [
        Layout(ulysses=2),
        Layout(ring=2),
        Layout(ulysses=4),
        Layout(ring=4),
        Layout(ring=2, ulysses=2),
        Layout(cfg=2, ring=2),
    ],
)
def test_the_formulas_count_what_is_sent(
    layout: Layout, two_ranks: RankPool, four_ranks: RankPool
) -> None:
    pool = two_ranks if layout.group_size == 2 else four_ranks
    cases = [Case(subject="Wan", layout=layout, batch=batch) for batch in (1, 2)]
    for outcomes in pool.run(compare, cases):
        for case, outcome in zip(cases, outcomes, strict=True):
            assert outcome.sent == sent(layout, communication.tiny(case.batch))


def test_z_image_sends_from_its_joint_layers_only(two_ranks: RankPool) -> None:
    """Not from the refiners before: there every rank has the whole sequence."""
    forward = Forward(tokens=64, layers=2, hidden=64, outputs=16, itemsize=4)
    layouts = (Layout(ulysses=2), Layout(ring=2))
    cases = [Case(subject="Z-Image", layout=layout) for layout in layouts]
    for outcomes in two_ranks.run(compare, cases):
        assert [o.sent for o in outcomes] == [sent(layout, forward) for layout in layouts]


def test_one_rank_sends_nothing() -> None:
    assert sent(Layout(), communication.tiny(1)) == {}


def test_wan_14b_on_eight_ranks() -> None:
    """By hand: a part is 75600 / 8 tokens × 5120 × 2 bytes = 96,768,000 bytes."""
    part = 96_768_000
    forward = communication.WAN_14B
    assert sent(Layout(ulysses=8), forward)["ulysses.all_to_all"] == 40 * 4 * part * 7 // 8
    assert sent(Layout(ring=8), forward)["ring.all_gather"] == 40 * 2 * part * 7
    both = sent(Layout(ring=2, ulysses=4), forward)
    assert both["ulysses.all_to_all"] == 40 * 4 * part * 3 // 4
    assert both["ring.all_gather"] == 40 * 2 * part
    assert both["sequence.all_gather"] == 9450 * 64 * 2 * 7


def test_the_page_is_current(two_ranks: RankPool, four_ranks: RankPool) -> None:
    page = (documents.DOCS / communication.NAME).read_text("utf-8")
    assert page == communication.document(two_ranks, four_ranks), (
        "run in test/: python -m tools.communication --write"
    )
