"""The pages that name code name code that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import documents, module_list

ROOT = documents.DOCS.parent
PAGES = ("architecture.md", "add_a_model.md", "numerics.md")


def test_the_list_of_modules_is_current() -> None:
    page = (documents.DOCS / module_list.NAME).read_text("utf-8")
    assert page == module_list.document(), "run: make docs"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_named_is_there(page: str) -> None:
    text = (documents.DOCS / page).read_text("utf-8")
    named = set(re.findall(r"`((?:\w+/)+\w+\.py)(?:::\w+)?`", text))
    assert named
    assert {path for path in named if not _exists(path)} == set()


def _exists(path: str) -> bool:
    return (ROOT / path).is_file() or (module_list.ROOT / path).is_file()


def test_every_test_named_is_there() -> None:
    text = (documents.DOCS / "numerics.md").read_text("utf-8")
    for path, name in re.findall(r"`(test/\S+\.py)::(\w+)`", text):
        assert f"def {name}(" in Path(ROOT / path).read_text("utf-8"), name


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = (documents.DOCS / page).read_text("utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (documents.DOCS / target).exists(), target
