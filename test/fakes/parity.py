"""Whole requests on real ranks: what N ranks make of them, to be compared with one.

The functions here run on the ranks of a pool (`fakes.ranks`), or, with a world of one, in the
calling process. Models stay loaded from one call to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

from safelight import config as configuration
from safelight.models.registry import load_family
from safelight.parallel.layout import complete
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec
from safelight.wire.messages import Encode, Plan, Step
from safelight.worker.executor import Executor

CPU = torch.device("cpu")
Settings = tuple[tuple[str, Any], ...]
"""Flat engine settings, hashable."""


@cache
def _loaded(settings: Settings) -> tuple[Any, Mesh]:
    config = configuration.build({"device": "cpu", **dict(settings)})
    layout = complete(config.parallel)
    mesh = Mesh.single(CPU) if layout.group_size == 1 else Mesh.create(layout, CPU)
    return load_family(config, mesh), mesh


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, as on the ranks of a pool: more take sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
@torch.inference_mode()
def generate(
    rank: int, settings: Settings, specs: Sequence[SampleSpec], together: bool
) -> tuple[list[np.ndarray], list[np.ndarray], dict[str, int]]:
    """Float latents and, on rank 0, frames of every sample, and the bytes that this rank sent.

    `together`: all in one batch; else one after another.
    """
    family, mesh = _loaded(settings)
    mesh.traffic.take()
    sessions = [family.begin(spec, family.encode(spec)) for spec in specs]
    for batch in [sessions] if together else [[s] for s in sessions]:
        for _ in range(batch[0].spec.sampling.num_inference_steps):
            family.step(batch)
    frames: list[np.ndarray] = []
    if mesh.rank == 0:
        frames = float_frames(family, sessions)
    elif family.decodes_together(sessions):
        family.decode(sessions)
    return [s.latents.numpy() for s in sessions], frames, mesh.traffic.take()


def float_frames(family: Any, sessions: list[Any]) -> list[np.ndarray]:
    """Frames before rounding, float32 in [0, 1]: [T, H, W, 3] of clips, [H, W, 3] of images."""
    pipeline, kept = family.pipeline, []
    if hasattr(pipeline, "video_processor"):
        processor, name = pipeline.video_processor, "postprocess_video"
    else:
        processor, name = pipeline.image_processor, "postprocess"
    original = getattr(processor, name)

    def keep(pixels: torch.Tensor, **kwargs: object) -> np.ndarray:
        kept.append(original(pixels, **kwargs))
        return kept[-1]

    setattr(processor, name, keep)
    try:
        family.decode(sessions)
    finally:
        delattr(processor, name)
    return list(kept[0])


@one_thread()
def execute(rank: int, settings: Settings, plans: Sequence[Plan]) -> dict[str, np.ndarray]:
    """Execute a recorded schedule; the latents of samples after each of their steps' last.

    Every sample that was begun is in the result with its newest latents, cancelled ones too.
    """
    family, mesh = _loaded(settings)
    executor = Executor(family, mesh, lambda spec, frames: None)
    latents: dict[str, np.ndarray] = {}
    for plan in plans:
        executor.release(plan.release)
        failures = executor.execute(plan)
        assert failures == (), failures
        if isinstance(plan, Encode | Step):
            for name in executor.samples:
                session = executor._sessions[name]
                latents[f"{name}@{session.index}"] = session.latents.numpy()
    return latents


def fail_after(rank: int, settings: Settings, spec: SampleSpec) -> str:
    """What becomes of a failure on all ranks alike after a whole request."""
    generate(rank, settings, [spec], False)
    _, mesh = _loaded(settings)
    try:
        with mesh.together():
            raise ValueError("on all ranks")
    except ValueError:
        return "agreed"


def weights(rank: int, settings: Settings) -> dict[str, int]:
    """Bytes of weights on this rank."""
    return _loaded(settings)[0].weights()
