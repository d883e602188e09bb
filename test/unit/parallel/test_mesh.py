"""Ranks along axes, and what they do when something fails."""

from __future__ import annotations

import pytest

from fakes import rank_work
from fakes.ranks import RankPool
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
