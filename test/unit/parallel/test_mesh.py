"""Ranks along axes, and what they do when something fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes import rank_work
from fakes.ranks import TIMEOUT, RankPool, pool
from safelight.parallel.layout import Layout

CFG_ULYSSES = Layout(cfg=2, ulysses=2)


@pytest.mark.parametrize(
    ("axis", "parts"),
    [
        ("ulysses", [[0, 1], [0, 1], [2, 3], [2, 3]]),
        ("cfg", [[0, 2], [1, 3], [0, 2], [1, 3]]),
    ],
)
def test_ranks_gather_along_an_axis(
    four_ranks: RankPool, axis: str, parts: list[list[float]]
) -> None:
    results = four_ranks.run(rank_work.gather, CFG_ULYSSES, axis)
    assert [found for found, _ in results] == parts
    # Three float32 to one other rank.
    assert {tuple(sent.items()) for _, sent in results} == {((f"{axis}.all_gather", 12),)}


def test_a_failure_of_all_is_a_failure_and_of_one_the_end(two_ranks: RankPool) -> None:
    layout = Layout(ulysses=2)
    assert two_ranks.run(rank_work.fail, layout, (0, 1)) == ["agreed", "agreed"]
    assert two_ranks.run(rank_work.fail, layout, (1,)) == ["fine", "diverged"]


@pytest.mark.parametrize("layout", [Layout(cfg=2, ulysses=2, tp=2), Layout(ring=2, ulysses=2)])
def test_every_group_has_the_timeout_that_was_given(four_ranks: RankPool, layout: Layout) -> None:
    """Groups of a part of the ranks get another one from torch."""
    assert four_ranks.run(rank_work.timeouts, layout) == [{TIMEOUT}] * 4


def test_ranks_that_cannot_talk_any_more_do_not_blame_a_sample() -> None:
    with pool(2) as ranks:  # of its own: its group is broken afterwards
        for said in ranks.run(rank_work.time_out_together):
            assert said.startswith("Ranks cannot talk any more")


def test_ranks_wait_for_one_with_work_of_its_own(two_ranks: RankPool, tmp_path: Path) -> None:
    assert two_ranks.run(rank_work.meet, tmp_path / "done") == [True, True]


def test_the_same_failure_in_different_plans_is_not_the_same(two_ranks: RankPool) -> None:
    assert two_ranks.run(rank_work.fail_plan) == ["diverged", "diverged"]
