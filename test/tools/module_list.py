"""Writes the list of modules in `docs/architecture.md` from the first lines of their docstrings.

Run in `test/`: `python -m tools.module_list [--write]`. The rest of the page is written by hand.
"""

from __future__ import annotations

import ast
from pathlib import Path

import safelight
from tools import documents

NAME = "architecture.md"
ROOT = Path(safelight.__file__).parent

_BEGIN = "<!-- modules: written by `make docs` -->\n"
_END = "<!-- end of modules -->\n"


def document() -> str:
    """The page with its list of modules made anew."""
    page = (documents.DOCS / NAME).read_text("utf-8")
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{_modules()}\n\n{_END}{after}"


def _modules() -> str:
    """A table for the top level and one for each folder."""
    folders = sorted({path.parent for path in _sources()})
    return "\n\n".join(_folder(folder) for folder in folders)


def _folder(folder: Path) -> str:
    name = "safelight" if folder == ROOT else str(folder.relative_to(ROOT))
    rows = [(f"`{path.name}`", _summary(path)) for path in _sources() if path.parent == folder]
    purpose = _summary(folder / "__init__.py")
    return f"### {name}/\n\n{purpose}\n\n" + documents.table(("module", "what it does"), *rows)


def _sources() -> list[Path]:
    """Every module with something in it."""
    return [p for p in sorted(ROOT.rglob("*.py")) if p.name != "__init__.py"]


def _summary(path: Path) -> str:
    """The first sentence of the module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence, stop, _ = paragraph.partition(". ")
    return sentence + stop.strip()


if __name__ == "__main__":
    documents.main(NAME, document)
