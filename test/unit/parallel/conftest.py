"""Fresh rank processes for every module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes.ranks import RankPool


@pytest.fixture(autouse=True, scope="module")
def fresh_ranks(two_ranks: RankPool, four_ranks: RankPool) -> Iterator[None]:
    """End the ranks after a module: every mesh that was made has process groups whose threads take
    turns with the work. A pool starts again when it is next used."""
    yield
    for pool in (two_ranks, four_ranks):
        pool.close()
