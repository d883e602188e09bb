"""The page of settings follows from the declarations."""

from __future__ import annotations

from safelight.config import engine_fields
from safelight.fields import declared
from safelight.request import Sampling
from tools import config_reference, documents


def test_the_page_is_current() -> None:
    page = (documents.DOCS / config_reference.NAME).read_text("utf-8")
    assert page == config_reference.document(), "run: make docs"


def test_every_setting_is_on_it() -> None:
    page = config_reference.document()
    for field in (*engine_fields().values(), *declared(Sampling)):
        name = f"{field.name}:` in a file" if field.file_only else f"{field.flag}`"
        assert f"| `{name} |" in page
        assert field.help, f"{field.name} has no description"
