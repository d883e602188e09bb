"""Documents that are generated: where they are, and how to write them anew."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def main(name: str, text: Callable[[], str]) -> None:
    """Print the document, or with `--write` write it to `docs/<name>`."""
    if sys.argv[1:] == ["--write"]:
        (DOCS / name).write_text(text(), "utf-8")
    else:
        sys.stdout.write(text())


def between(page: str, name: str, text: str) -> str:
    """`page` with what stands between the marks of `name` replaced."""
    before, _, after = _parted(page, name)
    return f"{before}{_begin(name)}\n{text}\n\n{_end(name)}{after}"


def cells(page: str, name: str) -> list[list[str]]:
    """The table between the marks of `name`: its heading and its rows."""
    lines = _parted(page, name)[1].strip().splitlines()
    heading, _, *rows = [[c.strip() for c in line.strip("| ").split(" | ")] for line in lines]
    return [heading, *rows]


def _parted(page: str, name: str) -> tuple[str, str, str]:
    before, found, rest = page.partition(_begin(name))
    inside, closed, after = rest.partition(_end(name))
    if not found or not closed:
        raise ValueError(f"the page has no marks of {name}")
    return before, inside, after


def _begin(name: str) -> str:
    return f"<!-- {name}: generated -->\n"


def _end(name: str) -> str:
    return f"<!-- end of {name} -->\n"


def table(*rows: tuple[str, ...]) -> str:
    """A Markdown table; the first row is its heading."""
    heading, *body = rows
    lines = [heading, tuple("---" for _ in heading), *body]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
