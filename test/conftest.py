"""Fixtures that several test folders share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_wan_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Wan checkpoint."""
    from fakes.zoo import tiny_wan

    return tiny_wan(tmp_path_factory.mktemp("zoo") / "tiny-wan")
