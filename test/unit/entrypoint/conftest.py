from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from fakes import stack


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    """A server that finishes every job at once; tests must not change its settings."""
    with stack.running(tmp_path_factory.mktemp("data"), max_body_bytes=20_000) as running:
        yield running


@pytest.fixture
def client(shared: stack.Stack) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=shared.base_url, timeout=30) as client:
        yield client


@pytest.fixture
def manual(tmp_path: Path) -> Iterator[stack.Stack]:
    """A server whose jobs move only when the test moves them."""
    with stack.running(tmp_path / "data", automatic=False, max_queued_samples=4) as running:
        yield running


@pytest.fixture
def slow(manual: stack.Stack) -> Iterator[httpx2.Client]:
    """A client of `manual`."""
    with httpx2.Client(base_url=manual.base_url, timeout=30) as client:
        yield client
