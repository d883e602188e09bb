"""What every pipeline must pass: one case a pipeline and task, and what Safelight makes of it.

A family's zoo module (`fakes/zoo_<family>.py`) has `CASES`; `fakes.pipelines` lists them all, and
`test/unit/models/test_pipelines.py` holds each to the diffusers pipeline's own output. What is
measured becomes the table of pipelines in `docs/numerics.md`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from fakes.parity import Settings, one_thread
from fakes.simulation import spec as sample_spec
from safelight import config as configuration
from safelight.models.card import ModelCard
from safelight.models.family import Clip
from safelight.models.registry import load_card, load_family
from safelight.request import Inputs, Picture, SampleSpec, Task
from safelight.wire.messages import Decode, Encode, Step
from safelight.worker.executor import Executor

PROMPT = "a red circle moving left"
CPU = torch.device("cpu")


def untouched(monkeypatch: Any) -> None:
    """No constant is another."""


@dataclass(frozen=True)
class Case:
    """One pipeline doing one task."""

    name: str
    """As in the table: `Wan 2.2 A14B`."""
    task: Task
    make: Callable[[Path], Path]
    """Writes a tiny checkpoint with `save_pretrained`; returns its directory. The same `make` is
    run once for all cases that name it."""
    reference: Callable[[Path, SampleSpec], np.ndarray]
    """What the diffusers pipeline's own `__call__` makes of the sample: uint8 frames [T, H, W, 3].

    It loads the directory itself, and takes seed, sizes and pictures from the spec.
    """
    values: Mapping[str, Any] = field(default_factory=dict)
    """Sampling parameters: small sizes, few steps."""
    images: tuple[tuple[int, int], ...] = ()
    """(width, height) of the input pictures."""
    mask: bool = False
    variant: Mapping[str, Any] = field(default_factory=dict)
    """Sampling parameters of the batch-mate, where they differ: another guidance, more steps."""
    on_two: Settings = (("ulysses_degree", 2),)
    """The layout in which two ranks share a sample."""
    solo: bool = False
    """Whether samples never share a forward (the generic family)."""
    environment: Callable[[Any], None] = untouched
    """Shrinks constants of the pipeline's module that are too large for a test (1 MP); on the ranks
    too, so a function of a module."""

    @property
    def id(self) -> str:
        return f"{self.name}, {self.task}"


class Checkpoints:
    """The cases' checkpoints, each written when it is first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._written: dict[Callable[[Path], Path], Path] = {}

    def of(self, case: Case) -> Path:
        return self.made(case.make)

    def made(self, make: Callable[[Path], Path]) -> Path:
        """What `make` writes, for reading only."""
        if make not in self._written:
            number = len(self._written)
            self._written[make] = make(self._directory / f"{number}" / "model")
        return self._written[make]

    def copied(self, make: Callable[[Path], Path], to: Path) -> Path:
        """The same in a directory of one's own, under any name."""
        shutil.copytree(self.made(make), to)
        return to


def card_of(path: Path, **settings: Any) -> ModelCard:
    return load_card(configuration.build({"model_path": str(path), "device": "cpu", **settings}))


def picture(directory: Path, size: tuple[int, int], seed: int, mode: str = "RGB") -> Picture:
    """A smooth random picture; a mask is white in its right half."""
    width, height = size
    if mode == "L":
        pixels = np.zeros((height, width), np.uint8)
        pixels[:, width // 2 :] = 255
    else:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    path = directory / f"{mode}-{seed}-{width}x{height}.raw"
    path.write_bytes(pixels.tobytes())
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return Picture(path=str(path), width=width, height=height, mode=mode, digest=digest)


def sample(case: Case, path: Path, name: str = "a.0", **values: Any) -> SampleSpec:
    """The case's request, as the manager would make it; pictures lie beside the model."""
    card = card_of(path)
    where = path.parent
    inputs = Inputs(
        images=tuple(picture(where, size, index) for index, size in enumerate(case.images)),
        mask=picture(where, case.images[0], 0, "L") if case.mask else None,
    )
    sampling = card.resolve({"seed": 7, **case.values, **values}, task=case.task, inputs=inputs)
    return msgspec.structs.replace(
        sample_spec(name),
        prompt=PROMPT,
        sampling=sampling,
        task=case.task,
        inputs=inputs,
        batch_key=card.batch_key(sampling, case.task, inputs),
        tokens=card.tokens(sampling, inputs),
    )


def mate(case: Case, path: Path) -> SampleSpec:
    """Another request for the same forwards: other prompt, seed and number of steps."""
    steps = int(case.values.get("num_inference_steps", 4)) + 2
    values = {"num_inference_steps": steps, "seed": 11, **case.variant}
    one = sample(case, path, "b.0", **values)
    return msgspec.structs.replace(one, prompt="two squares")


class Stepper:
    """The executor of one rank, driven plan by plan, as the scheduler would."""

    def __init__(self, family: Any, mesh: Any) -> None:
        self.frames: dict[str, np.ndarray] = {}
        self.sound: dict[str, np.ndarray] = {}
        self.previews: dict[int, np.ndarray] = {}
        """Of the sample shown last, by steps done."""
        self._seq = 0
        self._steps: dict[str, int] = {}
        self.executor = Executor(family, mesh, self._deliver, self._show)

    def _show(self, session: Any, frame: np.ndarray) -> None:
        self.previews[session.index] = frame

    def _deliver(self, spec: SampleSpec, made: Any) -> None:
        self.frames[spec.id] = made.frames if isinstance(made, Clip) else made
        if isinstance(made, Clip):
            self.sound[spec.id] = made.sound

    def _do(self, kind: Any, samples: Sequence[Any]) -> None:
        self._seq += 1
        plan = kind(seq=self._seq, release=(), samples=tuple(samples))
        failures = self.executor.execute(plan)
        assert failures == (), failures
        self._steps |= self.executor.steps(plan)

    def begin(self, *specs: SampleSpec) -> None:
        self._do(Encode, specs)

    def step(self, *names: str, count: int = 1) -> None:
        for _ in range(count):
            self._do(Step, names)

    def left(self, name: str) -> int:
        return self._steps[name] - self.executor._sessions[name].index

    def finish(self, name: str) -> np.ndarray:
        """All steps that are left, alone, and the decode; its frames."""
        self.step(name, count=self.left(name))
        self._do(Decode, [name])
        self.executor.release([name])
        return self.frames.get(name, np.zeros(0, np.uint8))


def loaded(path: Path, settings: Settings = ()) -> Any:
    """The family of a model on one rank."""
    values = {"model_path": str(path), "device": "cpu", **dict(settings)}
    return load_family(configuration.build(values))


def float_frames(family: Any, session: Any) -> np.ndarray:
    """Frames before rounding, float32 in [0, 1]; of a family that has no pipeline of its own for
    all samples, the rounded ones."""
    from fakes import parity

    pipeline = getattr(family, "pipeline", None)
    if hasattr(pipeline, "video_processor") or hasattr(pipeline, "image_processor"):
        return np.asarray(parity.float_frames(family, [session])[0])
    made = family.decode([session])[0]
    frames = made.frames if isinstance(made, Clip) else made
    return frames.astype(np.float32) / 255


def on_ranks(
    rank: int,
    settings: Settings,
    spec: SampleSpec,
    environment: Callable[[Any], None] = untouched,
) -> tuple[np.ndarray, np.ndarray]:
    """Work for a rank of a pool: last latents and, on rank 0, frames of one sample."""
    with pytest.MonkeyPatch.context() as patch:
        environment(patch)
        return _made(settings, spec)


@one_thread()
@torch.inference_mode()
def _made(settings: Settings, spec: SampleSpec) -> tuple[np.ndarray, np.ndarray]:
    from fakes import parity

    family, mesh = parity._loaded(settings)
    stepper = Stepper(family, mesh)
    stepper.begin(spec)
    stepper.step(spec.id, count=stepper.left(spec.id))
    session = stepper.executor._sessions[spec.id]
    frames = np.zeros(0, np.float32)
    if mesh.rank == 0:
        frames = float_frames(family, session)
    elif family.decodes_together([session]):
        family.decode([session])
    return session.latents.float().numpy(), frames
