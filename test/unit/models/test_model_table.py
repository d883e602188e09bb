"""The table of models is what the code says of itself."""

from __future__ import annotations

from fakes.cases import Checkpoints
from tools import documents, model_table


def test_the_table_is_current(checkpoints: Checkpoints) -> None:
    page = (documents.DOCS / model_table.NAME).read_text("utf-8")
    expected = documents.between(page, "models", model_table.table(checkpoints))
    assert page == expected, "run: make docs"
