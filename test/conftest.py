"""Fixtures that several test folders share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fakes.cases import Checkpoints
    from fakes.ranks import RankPool
    from fakes.server import Server


@pytest.fixture(scope="session")
def tiny_wan_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Wan checkpoint."""
    from fakes.zoo import tiny_wan

    return tiny_wan(tmp_path_factory.mktemp("zoo") / "tiny-wan")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """The tiny checkpoints of all pipelines."""
    from fakes.cases import Checkpoints

    return Checkpoints(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="session")
def live_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real `safelight serve` of the built-in model; one for the whole session."""
    from fakes.server import serving

    with serving(tmp_path_factory.mktemp("live") / "data") as server:
        yield server


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[RankPool]:
    """Two real rank processes over gloo."""
    from fakes.ranks import pool

    with pool(2) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def four_ranks() -> Iterator[RankPool]:
    """Four real rank processes over gloo."""
    from fakes.ranks import pool

    with pool(4) as ranks:
        yield ranks
