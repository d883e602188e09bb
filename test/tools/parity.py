"""Writes the tables of `docs/numerics.md` that compare many ranks with one.

Run in `test/`: `python -m tools.parity [--write]`; it starts rank processes and takes a minute. The
rest of the page is written by hand. `test/unit/parallel/test_parity.py` measures every cell again
and holds it to what the page says.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from fakes import parity, zoo, zoo_flux
from fakes.parity import Settings
from fakes.pipelines import CASES
from fakes.ranks import RankPool
from fakes.simulation import spec as sample_spec
from safelight import config as configuration
from safelight.errors import ConfigError
from safelight.models.registry import load_card
from safelight.parallel.layout import complete
from safelight.request import SampleSpec
from tools import documents, parity_parts, pipelines
from tools.bounds import bound, within

NAME = "numerics.md"
LAYOUTS: Mapping[str, Settings] = {
    "ulysses 2": (("ulysses_degree", 2),),
    "ulysses 4": (("ulysses_degree", 4),),
    "ring 2": (("ring_degree", 2),),
    "ring 4": (("ring_degree", 4),),
    "ulysses 2 × ring 2": (("ulysses_degree", 2), ("ring_degree", 2)),
    "cfg 2": (("cfg_parallel_size", 2),),
    "cfg 2 × ulysses 2": (("cfg_parallel_size", 2), ("ulysses_degree", 2)),
    "tp 2": (("tp_size", 2), ("sp_degree", 1)),
    "vae 2": (("num_gpus", 2), ("sp_degree", 1), ("vae_parallel", "on")),
    "all on 4": (
        ("cfg_parallel_size", 2),
        ("ulysses_degree", 2),
        ("tp_size", 2),
        ("vae_parallel", "on"),
    ),
    "ring, all on 4": (
        ("ulysses_degree", 2),
        ("ring_degree", 2),
        ("tp_size", 4),
        ("vae_parallel", "on"),
    ),
}
MODELS: Mapping[str, Callable[[Path], str]] = {
    "`builtin:shapes`": lambda directory: "builtin:shapes",
    "tiny random Wan": lambda directory: str(zoo.tiny_wan(directory)),
    "tiny random Wan of 3 heads": lambda directory: str(zoo.tiny_wan(directory, heads=3)),
    "tiny random Flux": lambda directory: str(zoo_flux.tiny_flux(directory)),
}

_CELL = re.compile(r"(?P<latents>0|≤ \S+) / (?P<frames>0|≤ \S+)")


@dataclass(frozen=True)
class Cell:
    """Largest differences in latents and in frames, or why it cannot be."""

    latents: float = 0.0
    frames: float = 0.0
    refusal: str = ""

    @property
    def text(self) -> str:
        return self.refusal or f"{bound(self.latents)} / {bound(self.frames)}"


class Ranks:
    """Rank pools and models for the tables."""

    def __init__(self, directory: Path, pools: Mapping[int, RankPool]) -> None:
        self._paths = {
            name: make(directory / f"model-{index}")
            for index, (name, make) in enumerate(MODELS.items())
        }
        self.directory = directory
        self.pools = pools
        self._turns = 0
        self._references: dict[tuple[str, bool], list[tuple[np.ndarray, np.ndarray]]] = {}

    def fresh_two(self) -> RankPool:
        """Two ranks, from time to time new ones: the meshes that were made stay in the old."""
        self._turns += 1
        if self._turns % 8 == 0:
            self.pools[2].close()
        return self.pools[2]

    def cell(self, model: str, layout: str, together: bool) -> Cell:
        """What the ranks of `layout` make of the requests, alone or batched, against one rank."""
        settings = (("model_path", self._paths[model]), *LAYOUTS[layout])
        config = configuration.build({"device": "cpu", **dict(settings)})
        try:
            load_card(config)
        except ConfigError as refused:
            return Cell(refusal=refused.message.partition(". Layouts that fit")[0])
        pool = self.pools[complete(config.parallel).group_size]
        found = self._on(pool, settings, model, together)
        latents = frames = 0.0
        for mine, reference in zip(found, self._reference(model, together), strict=True):
            latents = max(latents, float(np.abs(mine[0] - reference[0]).max()))
            frames = max(frames, float(np.abs(mine[1] - reference[1]).max()))
        return Cell(latents, frames)

    def _on(
        self, pool: RankPool, settings: Settings, model: str, together: bool
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Latents and frames of every request; the ranks must agree on every bit."""
        found = []
        for specs in self.requests(model):
            first, *others = pool.run(parity.generate, settings, specs, together)
            for other in others:
                for mine, its in zip(first[0], other[0], strict=True):
                    assert np.array_equal(mine, its), "ranks hold different latents"
            found += list(zip(first[0], first[1], strict=True))
        return found

    def _reference(self, model: str, together: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        if (model, together) not in self._references:
            settings = (("model_path", self._paths[model]),)
            self._references[model, together] = [
                pair
                for specs in self.requests(model)
                for pair in zip(*parity.generate(0, settings, specs, together)[:2], strict=True)
            ]
        return self._references[model, together]

    def requests(self, model: str) -> list[list[SampleSpec]]:
        """Batches: two clips, or images if it makes none, one of them unguided; and a still picture
        of another size."""
        config = configuration.build({"model_path": self._paths[model]})
        card = load_card(config)

        def make(name: str, **values: object) -> SampleSpec:
            size = {"width": 64, "height": 64, "num_inference_steps": 5, "guidance_scale": 3.0}
            sampling = card.resolve({**size, "seed": len(name), **values})
            prompt = f"a red circle moving left, {name}"
            return msgspec.structs.replace(sample_spec(name), prompt=prompt, sampling=sampling)

        frames = min(9, card.num_frames.max)
        return [
            [
                make("clip.0", num_frames=frames),
                make("unguided.0", num_frames=frames, guidance_scale=1.0),
            ],
            [make("still.0", num_frames=1, width=64, height=96)],
        ]


def holds(cell: Cell, text: str) -> bool:
    """Whether what was measured is what the page says, and the page is not far off either."""
    if cell.refusal:
        return text == cell.refusal
    said = _CELL.fullmatch(text)
    return said is not None and all(
        within(value, said[name])
        for name, value in (("latents", cell.latents), ("frames", cell.frames))
    )


def row(layout: str, together: bool) -> str:
    """The first cell of a row."""
    return f"{layout}, batched" if together else layout


def said(page: str, model: str, layout: str) -> str:
    """The cell of the page's table."""
    heading, *rows = documents.cells(page, "families")
    return next(row for row in rows if row[0] == layout)[heading.index(model)]


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """Pools of two and four ranks, and the models in a directory of their own."""
    with tempfile.TemporaryDirectory(prefix="safelight-") as directory:
        pools = {size: RankPool(size) for size in (2, 4)}
        try:
            yield Ranks(Path(directory), pools)
        finally:
            for pool in pools.values():
                pool.close()


def families(made: Ranks) -> str:
    """The table of families and layouts."""
    body = [
        (row(layout, together), *(made.cell(model, layout, together).text for model in MODELS))
        for layout in LAYOUTS
        for together in (False, True)
    ]
    return documents.table(("layout", *MODELS), ("1 rank", *("0 / 0" for _ in MODELS)), *body)


def document() -> str:
    page = (documents.DOCS / NAME).read_text("utf-8")
    with ranks() as made:
        page = documents.between(page, "families", families(made))
        rows = [row.cells for row in pipelines.rows(CASES, made.directory, made.fresh_two)]
        page = documents.between(page, "pipelines", documents.table(pipelines.HEADINGS, *rows))
        for name, (table, headings) in parity_parts.SECTIONS.items():
            text = parity_parts.text(table(made.pools), headings)
            page = documents.between(page, name, text)
    return page


if __name__ == "__main__":
    documents.main(NAME, document)
