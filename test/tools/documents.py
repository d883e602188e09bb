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
    begin, end = f"<!-- {name}: generated -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no marks of {name}")
    return f"{before}{begin}\n{text}\n\n{end}{after}"


def table(*rows: tuple[str, ...]) -> str:
    """A Markdown table; the first row is its heading."""
    heading, *body = rows
    lines = [heading, tuple("---" for _ in heading), *body]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
