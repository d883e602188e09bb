"""Every spelling of the adapters of a request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from safelight.errors import InvalidRequest
from safelight.manager.wanted import MAX_ADAPTERS, MAX_TEXT, wanted
from safelight.request import Adapter


def of(name: str, scale: float = 1.0, target: str = "all", path: str = "") -> Adapter:
    return Adapter(name=name, scale=scale, target=target, path=path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], ()),
        ("", ()),
        ("style", (of("style"),)),
        ("style:0.5", (of("style", 0.5),)),
        ("a:b", (of("a:b"),)),
        ("org/name:-1", (of("org/name", -1.0),)),
        ({"name": "style", "scale": 0.5}, (of("style", 0.5),)),
        ([{"lora_nickname": "style", "strength": 2}], (of("style", 2.0),)),
        ([{"name": "a", "target": "transformer_2"}, "b"], (of("a", 1, "transformer_2"), of("b"))),
        ({"name": "a", "path": "a", "scale": 1, "int_id": 7}, (of("a", path="a"),)),
        ({"path": "a"}, (of("a"),)),
        ({"name": "a", "path": None, "scale": None}, (of("a"),)),
        (
            [{"name": "a", "target": "transformer"}, {"name": "a", "target": "transformer_2"}],
            (of("a", target="transformer"), of("a", target="transformer_2")),
        ),
    ],
)
def test_spellings(value: Any, expected: tuple[Adapter, ...]) -> None:
    assert wanted(value) == expected
    if not isinstance(value, str):  # in a form it is JSON text
        assert wanted(json.dumps(value), strict=False) == expected


def test_numbers_of_forms_are_text() -> None:
    assert wanted([{"name": "a", "scale": "0.5"}], strict=False) == (of("a", 0.5),)
    with pytest.raises(InvalidRequest, match="'scale'"):
        wanted([{"name": "a", "scale": "0.5"}])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (7, "an adapter is a name"),
        ([[]], "an adapter is a name"),
        ("[1", "is not JSON"),
        ("[" * 5000, "is not JSON"),
        ("[" + "[]," * MAX_TEXT + "[]]", f"at most {MAX_TEXT} are read"),
        ({"scale": 1}, "without a name"),
        ({"name": ""}, "1 to 256 printable"),
        ({"name": "a\nb"}, "1 to 256 printable"),
        ({"name": "x" * 257}, "1 to 256 printable"),
        ({"name": "a", "scael": 1}, "Did you mean 'scale'"),
        ({"name": "a", "scale": 11}, "'scale'"),
        ({"name": "a", "scale": 1, "strength": 2}, "one thing twice"),
        ({"name": "a", "lora_name": "b"}, "one thing twice"),
        ("a:nan", "the scale nan"),
        ("a:99", "-10 to 10"),
        (["a", "a:0.5"], "twice"),
        ([{"name": "a", "target": "transformer"}, "a"], "twice"),
        (["x"] * (MAX_ADAPTERS + 1), "at most"),
    ],
)
def test_mistakes_are_named(value: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as failure:
        wanted(value)
    assert failure.value.param == "lora"
