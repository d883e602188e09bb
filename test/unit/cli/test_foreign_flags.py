"""The page of other systems' flags follows from the declarations."""

from __future__ import annotations

from tools import documents, foreign_flags


def test_the_page_is_current() -> None:
    page = (documents.DOCS / foreign_flags.NAME).read_text("utf-8")
    assert page == foreign_flags.document(), "run: make docs"


def test_every_kind_of_name_is_on_it() -> None:
    rows = dict(foreign_flags.rows())
    assert rows["`--model-name`"] == "`--model-path`"
    assert rows["`-g`"] == "`--gpu-ids`"
    assert rows["`--parallel-type`"].startswith("`--ulysses-degree`")
    assert rows["`--rdt`"] == "`--step-cache-threshold`"
    assert rows["`--cache`"] == "`--step-cache first-block`; off: `none`."
    assert rows["`--device-map`"].startswith("refused: a model is not cut up")
