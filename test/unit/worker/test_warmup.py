"""The warm-up: what is tried out, with which pictures, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from fakes.cases import CPU
from fakes.engine_peer import CARD
from safelight.models.card import ModelCard
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec, Task
from safelight.worker.warmup import BATCHES, warm_up


class Watched:
    """A family that remembers what it was asked to begin."""

    def __init__(self, refuses: int = 0) -> None:
        self.refuses = refuses
        """Width it cannot make."""
        self.begun: list[SampleSpec] = []
        self.sizes: list[tuple[int, ...]] = []

    def encode(self, sample: SampleSpec) -> None:
        return None

    def begin(self, sample: SampleSpec, conditioning: None) -> SampleSpec:
        if sample.sampling.width == self.refuses:
            raise ValueError("not this size")
        self.begun.append(sample)
        # The pictures are there while it runs, and only then.
        self.sizes.append(tuple(Path(p.path).stat().st_size for p in sample.inputs.pictures))
        return sample

    def step(self, batch: Any) -> None:
        return

    def decodes_together(self, sessions: Any) -> bool:
        return False

    def decode(self, sessions: Any) -> list[None]:
        return [None for _ in sessions]


def card_of(*tasks: Task, **changes: Any) -> ModelCard:
    values = {"tasks": tasks, "max_images": 2, **changes}
    return msgspec.structs.replace(CARD, **values)


def run(family: Watched, card: ModelCard) -> list[tuple[str, int, int]]:
    timings = warm_up(family, card, Mesh.single(CPU))  # type: ignore[arg-type]
    return [(timing.op, timing.tokens, timing.batch) for timing in timings]


def test_the_smallest_and_a_cheap_default_size_in_every_batch() -> None:
    family = Watched()
    timings = run(family, card_of("text-to-video", "text-to-image"))
    sizes = {(s.sampling.width, s.sampling.num_frames) for s in family.begun}
    assert sizes == {(32, 1), (64, 9)}
    assert {(op, batch) for op, _, batch in timings} == {
        (op, batch) for op in ("encode", "step", "decode") for batch in BATCHES
    }


def test_what_shares_no_forward_is_tried_alone() -> None:
    timings = run(Watched(), card_of("text-to-video", alone=True))
    assert {batch for _, _, batch in timings} == {1}


@pytest.mark.parametrize(
    ("task", "count", "pictures"),
    [("image-to-image", 1, 1), ("image-to-video", 2, 2), ("inpainting", 1, 2)],
)
def test_a_model_that_needs_pictures_gets_some(task: Task, count: int, pictures: int) -> None:
    family = Watched()
    assert run(family, card_of(task, min_images=count))
    for spec, sizes in zip(family.begun, family.sizes, strict=True):
        pixels = spec.sampling.width * spec.sampling.height
        expected = [3 * pixels] * count + [pixels] * (pictures - count)
        assert list(sizes) == expected
    left = {Path(p.path) for spec in family.begun for p in spec.inputs.pictures}
    assert not any(path.exists() for path in left)


def test_a_size_that_the_model_refuses_is_left_out() -> None:
    timings = run(Watched(refuses=32), card_of("text-to-video"))
    assert {tokens for _, tokens, _ in timings} == {3 * 16}


def test_what_costs_money_is_not_tried() -> None:
    family = Watched()
    assert run(family, card_of("text-to-image", rehearsed=False)) == []
    assert family.begun == []
