"""A short warm-up: the first forwards are slow, and the cost model wants to know what they cost."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from safelight import log
from safelight.errors import InvalidRequest
from safelight.models.card import ModelCard
from safelight.request import TASKS, Delivery, Inputs, Picture, SampleSpec, Sampling, Task
from safelight.wire.messages import Timing

if TYPE_CHECKING:
    from safelight.models.family import Family
    from safelight.parallel.mesh import Mesh

logger = log.get(__name__)

BATCHES = (1, 2, 4, 8)
CHEAP = 2_000
"""Tokens; a default size below it is warmed up too, a larger one would delay the start."""


@torch.inference_mode()
def warm_up(family: Family, card: ModelCard, mesh: Mesh) -> tuple[Timing, ...]:
    """Run a step of every kind at the smallest size, and at the default size if it is cheap."""
    if not card.rehearsed:
        return ()
    with tempfile.TemporaryDirectory(prefix="safelight-warmup-") as directory:
        sizes = (_smallest(card, Path(directory)), _default(card, Path(directory)))
        timings = [
            timing
            for size in sizes
            if size is not None
            for timing in _tried(family, card, mesh, *size)
        ]
    mesh.traffic.take()
    return tuple(timings)


def _task(card: ModelCard) -> Task:
    """What is warmed up: text alone if the model takes it."""
    return next((task for task in card.tasks if task.startswith("text")), card.tasks[0])


Size = tuple[Sampling, Inputs]


def _smallest(card: ModelCard, directory: Path) -> Size | None:
    smallest = {name: getattr(card, name).min for name in ("width", "height", "num_frames")}
    return _resolved(card, smallest, directory)


def _default(card: ModelCard, directory: Path) -> Size | None:
    default = _resolved(card, {}, directory)
    return default if default is not None and card.tokens(*default) <= CHEAP else None


def _resolved(card: ModelCard, values: dict[str, int], directory: Path) -> Size | None:
    """None if it cannot be made here: the ranks cannot share so few tokens."""
    task = _task(card)
    filled = card.fill(values, task=task)
    inputs = grey(task, filled.width, filled.height, card.min_images, directory)
    values = {"width": filled.width, "height": filled.height, **values, "num_inference_steps": 2}
    if task in TASKS["image"]:
        values["num_frames"] = 1
    try:
        return card.resolve(values, task=task, inputs=inputs), inputs
    except InvalidRequest:
        return None


def grey(task: Task, width: int, height: int, count: int, directory: Path) -> Inputs:
    """`count` pictures of this size, if the task needs some."""
    if task.startswith("text"):
        return Inputs()
    image, mask = directory / f"{width}x{height}.rgb", directory / f"{width}x{height}.l"
    image.write_bytes(bytes([127]) * (3 * width * height))
    mask.write_bytes(bytes([255]) * (width * height))
    picture = Picture(path=str(image), width=width, height=height, digest=f"grey {image.name}")
    white = Picture(
        path=str(mask), width=width, height=height, mode="L", digest=f"white {mask.name}"
    )
    return Inputs(images=(picture,) * count, mask=white if task == "inpainting" else None)


def _tried(
    family: Family, card: ModelCard, mesh: Mesh, sampling: Sampling, inputs: Inputs
) -> list[Timing]:
    """The timings of one size; none if the model refuses it, as a pipeline may that has no native
    family: its card knows the sizes only roughly."""
    try:
        return list(_time(family, card, mesh, sampling, inputs))
    except ValueError as failure:
        size = f"{sampling.width}x{sampling.height}"
        logger.warning("not warmed up", size=size, reason=str(failure))
        return []


def _time(
    family: Family, card: ModelCard, mesh: Mesh, sampling: Sampling, inputs: Inputs
) -> Iterator[Timing]:
    tokens = card.tokens(sampling, inputs)
    for size in (1,) if card.alone else BATCHES:
        # The first forward of a shape allocates; new prompts, because embeddings are cached.
        for kind in ("rehearsal", "warm-up"):
            specs = [
                _spec(card, sampling, inputs, f"{kind} {i} of {size}, {tokens} tokens")
                for i in range(size)
            ]
            timed = _rehearse(family, mesh, specs)
        for op, seconds in timed.items():
            yield Timing(op=op, tokens=tokens, batch=size, seconds=seconds)


def _rehearse(family: Family, mesh: Mesh, specs: list[SampleSpec]) -> dict[str, float]:
    """Seconds of an encode, a step and a decode of `specs`."""
    times = [_now()]
    sessions = [family.begin(spec, family.encode(spec)) for spec in specs]
    times.append(_now())
    family.step(sessions)
    times.append(_now())
    if mesh.rank == 0 or family.decodes_together(sessions):
        family.decode(sessions)
    times.append(_now())
    spans = [end - start for start, end in itertools.pairwise(times)]
    return dict(zip(("encode", "step", "decode"), spans, strict=True))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def _spec(card: ModelCard, sampling: Sampling, inputs: Inputs, prompt: str) -> SampleSpec:
    return SampleSpec(
        id=prompt,
        attempt=0,
        prompt=prompt,
        sampling=sampling,
        priority=0,
        batch_key="",
        tokens=0,
        delivery=Delivery(path="", format="png", fps=1, compression=0, parameters={}),
        task=_task(card),
        inputs=inputs,
    )
