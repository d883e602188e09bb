"""The table of pipelines in `docs/numerics.md`: every case against diffusers, and against itself.

`tools.parity` writes the page, `test/unit/models/test_pipelines.py` measures every row again. For
one family while it is written, in `test/`: `python -m tools.pipelines "FLUX.1"`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fakes import cases, parity
from fakes.cases import Case, Checkpoints, Stepper
from fakes.pipelines import CASES
from fakes.ranks import RankPool
from safelight.parallel.mesh import Mesh
from tools.bounds import LARGEST, bound, within

HEADINGS = (
    "pipeline",
    "task",
    "alone, against diffusers",
    "batched",
    "preempted and resumed",
    "two ranks",
)
NONE = "—"
Result = tuple[np.ndarray, np.ndarray]
"""Last latents and float frames."""


@dataclass(frozen=True)
class Row:
    """Largest differences of one case; latents and frames, frames in [0, 1]."""

    case: Case
    exact: bool
    """Whether the uint8 frames are those of the diffusers pipeline."""
    batched: tuple[float, float] | None
    resumed: tuple[float, float]
    ranks: tuple[float, float] | None

    @property
    def cells(self) -> tuple[str, ...]:
        layout = " ".join(f"{name.partition('_')[0]} {value}" for name, value in self.case.on_two)
        two = NONE if self.ranks is None else f"{_text(self.ranks)} ({layout})"
        return (
            self.case.name,
            self.case.task,
            "the same bits" if self.exact else "**other bits**",
            NONE if self.batched is None else _text(self.batched),
            _text(self.resumed),
            two,
        )

    def holds(self, said: Sequence[str]) -> bool:
        """Whether the page's row says what was measured."""
        mine = self.cells
        if list(said[:3]) != list(mine[:3]):
            return False
        pairs = zip((self.batched, self.resumed, self.ranks), said[3:], strict=True)
        return all(_within(values, text) for values, text in pairs)

    @property
    def largest(self) -> float:
        return max(self.resumed + (self.batched or ()) + (self.ranks or ()))


def _text(values: tuple[float, float]) -> str:
    return " / ".join(map(bound, values))


def _within(values: tuple[float, float] | None, text: str) -> bool:
    if values is None:
        return text == NONE
    parts = text.partition(" (")[0].split(" / ")
    return len(parts) == len(values) and all(map(within, values, parts))


@parity.one_thread()
@torch.inference_mode()
def measure(case: Case, path: Path, pool: RankPool | None) -> Row:
    """Run one case in every way; without a pool, on one rank only."""
    with _environment(case):
        spec, mate = cases.sample(case, path), cases.mate(case, path)
        expected = case.reference(path, spec)
        family = cases.loaded(path)
        alone = Stepper(family, Mesh.single(parity.CPU))
        alone.begin(spec)
        made = alone.finish(spec.id)
        references = {s.id: _alone(family, s) for s in (spec, mate)}
        batched = None if case.solo else _difference(_batched(family, spec, mate), references)
        resumed = _difference(_preempted(family, spec, mate), references)
        ranks = None
        if pool is not None and case.on_two:
            settings = (("model_path", str(path)), *case.on_two)
            results = pool.run(cases.on_ranks, settings, spec, case.environment)
            for latents, _ in results:
                assert np.array_equal(latents, results[0][0]), "ranks hold different latents"
            ranks = _difference({spec.id: results[0]}, references)
    exact = made.shape == expected.shape and np.array_equal(made, expected)
    return Row(case, exact, batched, resumed, ranks)


@contextmanager
def _environment(case: Case) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        case.environment(patch)
        yield


def _results(family: Any, stepper: Stepper, *names: str) -> dict[str, Result]:
    """Of samples whose steps are done."""
    found = {}
    for name in names:
        session = stepper.executor._sessions[name]
        latents = session.latents.float().numpy().copy()
        found[name] = (latents, cases.float_frames(family, session))
    return found


def _alone(family: Any, spec: Any) -> Result:
    stepper = Stepper(family, Mesh.single(parity.CPU))
    stepper.begin(spec)
    stepper.step(spec.id, count=stepper.left(spec.id))
    return _results(family, stepper, spec.id)[spec.id]


def _batched(family: Any, spec: Any, mate: Any) -> dict[str, Result]:
    """They share forwards at different steps: `mate` comes a step later, and stays longer."""
    assert spec.batch_key == mate.batch_key, "such samples would never share a forward"
    stepper = Stepper(family, Mesh.single(parity.CPU))
    stepper.begin(spec)
    stepper.step(spec.id)
    stepper.begin(mate)
    together = stepper.left(spec.id)
    assert 0 < together < stepper.left(mate.id)
    stepper.step(spec.id, mate.id, count=together)
    stepper.step(mate.id, count=stepper.left(mate.id))
    return _results(family, stepper, spec.id, mate.id)


def _preempted(family: Any, spec: Any, mate: Any) -> dict[str, Result]:
    """Each waits for the other in the middle of its steps."""
    stepper = Stepper(family, Mesh.single(parity.CPU))
    stepper.begin(spec)
    stepper.step(spec.id)
    stepper.begin(mate)
    stepper.step(mate.id, count=2)
    stepper.step(spec.id, count=stepper.left(spec.id))
    found = _results(family, stepper, spec.id)
    stepper.step(mate.id, count=stepper.left(mate.id))
    return found | _results(family, stepper, mate.id)


def _difference(found: dict[str, Result], references: dict[str, Result]) -> tuple[float, float]:
    pairs = [(mine, references[name]) for name, mine in found.items()]
    first, second = (
        max(float(np.abs(mine[part] - its[part]).max()) for mine, its in pairs) for part in (0, 1)
    )
    return first, second


def rows(
    chosen: Sequence[Case], directory: Path, pool: Callable[[], RankPool | None]
) -> Iterator[Row]:
    """Measure `chosen`; checkpoints are written once each."""
    checkpoints = Checkpoints(directory)
    for case in chosen:
        yield measure(case, checkpoints.of(case), pool())


def complaint(row: Row, said: Sequence[str] | None) -> str:
    """What is wrong with a row of the page; empty if nothing is."""
    if not row.exact:
        return f"{row.case.id}: not the bits of the diffusers pipeline"
    if not row.largest <= LARGEST:
        return f"{row.case.id}: {row.cells} is beyond {LARGEST}"
    if said is None or not row.holds(said):
        return f"{row.case.id}: {row.cells} is not {said}: make parity"
    return ""


def main(pattern: str = "") -> None:
    """Print the rows of the cases whose name contains `pattern`."""
    pool = RankPool(2)
    try:
        with tempfile.TemporaryDirectory(prefix="safelight-") as directory:
            chosen = [case for case in CASES if pattern in case.id]
            for row in rows(chosen, Path(directory), lambda: pool):
                sys.stdout.write(" | ".join(row.cells) + "\n")
    finally:
        pool.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
