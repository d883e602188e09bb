"""`docs/coverage.md`: every name of the manuals has a test that exists, and the page is current."""

from __future__ import annotations

import pytest

from fakes import manuals
from tools import coverage, documents


def test_every_name_has_a_test() -> None:
    without = [row.id for row in manuals.names() if coverage.test_of(row) is None]
    assert without == []


def test_every_example_has_a_test() -> None:
    without = [key for key, one in manuals.examples().items() if one.kind not in coverage.EXAMPLES]
    assert without == []


@pytest.mark.parametrize("node", sorted(coverage.named()))
def test_the_test_exists(node: str) -> None:
    path, _, function = node.partition("::")
    assert path in coverage.files(), f"there is no test/{path}"
    assert not function or function in coverage.functions(path), f"{path} has no {function}"


def test_a_request_is_there_for_every_endpoint() -> None:
    used = {row.of or row.name for row in manuals.names() if row.kind in coverage.HTTP}
    assert used - manuals.requests().keys() == set()


def test_the_page_is_current() -> None:
    page = (documents.DOCS / coverage.NAME).read_text("utf-8")
    assert page == coverage.document(), "run: make docs"
