"""Writes `docs/coverage.md`: every name and example of the five manuals, and its test.

Run in `test/`: `python -m tools.coverage [--write]`. The data are in `test/conformance/manuals/`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import msgspec

from fakes import manuals
from fakes.manuals import Example, Kind, Name, Way
from tools import documents

NAME = "coverage.md"
TESTS = Path(__file__).parents[1]
HTTP = ("endpoint", "field", "answer")
"""Kinds that are tried with a request of `requests.yaml`."""

_NAMES = "conformance/test_manual_names.py::"
_TRIED: Mapping[Kind, str] = {
    "flag": _NAMES + "test_a_command_line",
    "key": _NAMES + "test_a_key_of_a_config_file",
    "env": _NAMES + "test_a_variable",
    "endpoint": _NAMES + "test_an_endpoint",
    "field": _NAMES + "test_a_field",
    "answer": _NAMES + "test_a_field_of_an_answer",
}
EXAMPLES: Mapping[Way, str] = {
    "http": "conformance/test_manual_examples.py::test_an_http_example",
    "start": "conformance/test_manual_starts.py::test_a_start",
    "generate": "conformance/test_manual_starts.py::test_a_start",
    "config": "conformance/test_manual_starts.py::test_a_config_file",
    "elsewhere": "conformance/test_manual_starts.py::test_examples_for_other_programs",
}
"""The test that runs all examples of a kind."""

_INTRODUCTION = """\
# Coverage

Generated from `test/conformance/manuals/` by `make docs`; do not edit.

Every command, endpoint, field and flag of five systems' manuals, what it is here, and the test that
exercises it; then every example, which runs as printed but for hosts, models, tool names and the
reader's own files (`test/conformance/manuals/substitutions.yaml`). A name without a test, or a test
that is not there, fails `test/conformance/test_coverage.py`. Paths are below `test/`.

Sizes and steps of the HTTP examples are as printed, so their servers write files without computing
them; some run once more against the built-in model, with its sizes.
Where a manual's indentation was lost in print, it was given back."""


def test_of(row: Name) -> str | None:
    """The test that exercises a name; None if it has none."""
    tried = row.details.attempt is not msgspec.UNSET or row.kind in ("endpoint", "answer")
    return row.details.test or (_TRIED.get(row.kind) if tried else None)


def named() -> set[str]:
    """Every test that the page names."""
    return {test for row in manuals.names() if (test := test_of(row))} | set(EXAMPLES.values())


def files() -> set[str]:
    """Every file of tests."""
    return {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}


@cache
def functions(path: str) -> set[str]:
    """Names of the tests in a file."""
    tree = ast.parse((TESTS / path).read_text("utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def document() -> str:
    parts = [_INTRODUCTION, *_systems(), "# Examples", *_examples()]
    return "\n\n".join(parts) + "\n"


def _systems() -> Iterator[str]:
    for system in dict.fromkeys(row.system for row in manuals.names()):
        rows = [_row(row) for row in manuals.names() if row.system == system]
        heading = ("", "of", "name", "here", "test")
        yield f"# {system}\n\n" + documents.table(heading, *rows)


def _row(row: Name) -> tuple[str, ...]:
    of = f"`{row.of}`" if row.of else ""
    return (row.kind, of, f"`{row.name}`", _here(row), _test(test_of(row)))


def _here(row: Name) -> str:
    text = row.details.here
    if text is None:
        return "the same"
    command = text.startswith(("safelight", "-", "SAFELIGHT_", "pip ", "GET ", "POST "))
    return f"`{text}`" if command or " " not in text else text


def _test(node: str | None) -> str:
    return f"`{node}`" if node else ""


def _examples() -> Iterator[str]:
    heading = ("manual", "section", "example", "in", "test")
    yield documents.table(heading, *map(_example, manuals.examples().items()))


def _example(item: tuple[str, Example]) -> tuple[str, ...]:
    key, example = item
    manual, _, name = key.partition("/")
    return (manual, example.section, name, example.language, _test(EXAMPLES[example.kind]))


if __name__ == "__main__":
    documents.main(NAME, document)
