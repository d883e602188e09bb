"""The tables of `docs/numerics.md` for the parts of a pipeline: transformers, encoders, VAEs.

Every part that can be shared out is compared with the whole one, whether or not a family uses it
yet. `tools.parity` writes the page.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from fakes import tensor_work, vae_work
from fakes.ranks import RankPool
from fakes.sequence_parity import sequence_parity
from safelight.parallel.layout import Layout
from tools import documents
from tools.bounds import bound, within

Pools = Mapping[int, RankPool]
Value = float | str
"""A difference, or words."""
Table = dict[tuple[str, ...], tuple[Value, ...]]
"""The first cells of a row -> the others."""


def transformers(pools: Pools) -> Table:
    """One forward of every transformer in every layout, even and uneven lengths."""
    found: Table = {}
    for row in sequence_parity(pools[2], pools[4]):
        value = row.difference if row.difference is not None else f"refused: {row.refusal}"
        key = (row.transformer, name_of(row.layout))
        if row.even:
            found[key] = (value, "padded by the model")
        else:
            found[key] = (found[key][0], value)
    return found


def encoders(pools: Pools) -> Table:
    """Every encoder shared by two and by four ranks: difference, and weights of a rank."""
    with tempfile.TemporaryDirectory(prefix="safelight-") as directory:
        rows = tensor_work.rows(Path(directory), dict(pools))
    return {(row.encoder, f"tp {row.degree}"): (row.difference, f"{row.share:.0%}") for row in rows}


def vaes(pools: Pools) -> Table:
    """Every VAE split over two and over four ranks; differences relative to the largest value."""
    found: Table = {}
    for row in vae_work.table(dict(pools)):
        value: Value = f"whole: {row.reason}"
        if row.delta is not None and row.magnitude is not None:
            value = row.delta / row.magnitude
        key = (row.vae, f"{row.ranks} ranks")
        found[key] = (*found.get(key, ()), value)
    return found


SECTIONS: Mapping[str, tuple[Callable[[Pools], Table], tuple[str, ...]]] = {
    "transformers": (transformers, ("transformer", "layout", "even lengths", "uneven lengths")),
    "encoders": (encoders, ("text encoder", "degree", "outputs", "weights of a rank")),
    "vaes": (vaes, ("VAE", "ranks", "decode", "encode")),
}
"""Name of the marks on the page -> what fills them, and the headings."""


def text(table: Table, headings: tuple[str, ...]) -> str:
    rows = ((*key, *map(_cell, values)) for key, values in table.items())
    return documents.table(headings, *rows)


def differs(table: Table, said: list[list[str]]) -> dict[str, str]:
    """Cells of the page that are not what was measured, and rows that are missing or too many.

    Row and number of the cell -> what is wrong.
    """
    page = {tuple(row[:2]): row[2:] for row in said}
    wrong = {str(key): "only on the page" for key in page.keys() - table.keys()}
    for key, values in table.items():
        cells = page.get(key, [""] * len(values))
        for number, (value, cell) in enumerate(zip(values, cells, strict=True)):
            fine = cell == value if isinstance(value, str) else within(value, cell)
            if not fine:
                wrong[f"{key} {number}"] = f"{value} is not '{cell}'"
    return wrong


def _cell(value: Value) -> str:
    return value if isinstance(value, str) else bound(value)


def name_of(layout: Layout) -> str:
    degrees = (("cfg", layout.cfg), ("ring", layout.ring), ("ulysses", layout.ulysses))
    return " × ".join(f"{axis} {degree}" for axis, degree in degrees if degree > 1)
