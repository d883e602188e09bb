"""Writes the table of other systems' flags into `docs/cli.md`.

Run in `test/`: `python -m tools.foreign_flags [--write]`. The rest of the page is written by hand.
"""

from __future__ import annotations

from safelight.cli import foreign, options
from safelight.cli.generate import GenerateOptions
from safelight.config import engine_fields
from safelight.fields import declared, flag
from tools import documents

NAME = "cli.md"


def document() -> str:
    """The page with its table made anew."""
    page = (documents.DOCS / NAME).read_text("utf-8")
    return documents.between(page, "foreign", documents.table(("flag", "here"), *rows()))


def rows() -> list[tuple[str, str]]:
    """Every other name: of what it is another name, what it means, or why it is refused."""
    fields = [*engine_fields().values(), *declared(GenerateOptions)]
    same = [(f"`{flag(name)}`", f"`{f.flag}`") for f in fields for name in f.aliases]
    short = [(f"`{name}`", f"`{flag(f)}`") for f, names in options.SHORT.items() for name in names]
    meant = [(f"`{field.flag}`", field.help) for field in declared(foreign.Foreign)]
    refused = [(f"`{flag(n)}`", f"refused: {r.instead}.") for n, r in foreign.REFUSED.items()]
    return [*same, *short, *meant, *refused]


if __name__ == "__main__":
    documents.main(NAME, document)
