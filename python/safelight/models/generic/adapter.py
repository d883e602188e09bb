"""Any diffusers pipeline through the adapter protocol: its own `__call__`, stepped from outside.

Every sample runs the call on a copy of the pipeline that shares only the models, in a course of its
own (`course.py`), which stops where the pipeline moves its progress bar. So one sample has the
pipeline's bits, preempted or not, by construction. A batch is stepped one by one.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import msgspec
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import (
    FeatureExtractionMixin,
    ImageProcessingMixin,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from safelight.config import EngineConfig, Precision
from safelight.errors import ConfigError
from safelight.lora.adapters import Adapters
from safelight.models import inputs
from safelight.models.generic.calls import Call, calls_of
from safelight.models.generic.course import Bar, Course
from safelight.models.generic.results import made_of
from safelight.models.loading import load_pipeline, weight_bytes
from safelight.models.samplers import own
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec, Task

if TYPE_CHECKING:
    from safelight.models.family import Clip, Frames

SHARED = (
    torch.nn.Module,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    ImageProcessingMixin,
    FeatureExtractionMixin,
)
"""What the calls of all samples use: it is not written to, or only within one step."""

NOTHING_YET = torch.zeros(1)


@dataclass(kw_only=True, eq=False)
class GenericSession:
    """A sample whose pipeline is in the middle of its call."""

    spec: SampleSpec
    course: Course
    index: int = 0
    estimate: None = None
    """What its latents mean is the pipeline's own."""
    _end: weakref.finalize[..., Any] = field(init=False)

    def __post_init__(self) -> None:
        # Whoever holds a session just drops it; the course must then end. It knows no session.
        self._end = weakref.finalize(self, self.course.close)

    @property
    def steps(self) -> int:
        """As the pipeline counts them."""
        return max(1, self.course.total)

    @property
    def latents(self) -> torch.Tensor:
        """As the pipeline shows them after a step; a zero before, or if it never does."""
        found = self.course.latents
        return NOTHING_YET if found is None else found

    def advance(self) -> None:
        """One step."""
        while self.course.done <= self.index and not self.course.ended:
            self.course.resume()
        if self.course.ended:
            self.course.resume()  # raises what it raised
        self.index += 1

    def finish(self) -> None:
        """What is left of the call."""
        while not self.course.ended:
            self.course.resume()
        self.course.resume()


class GenericFamily:
    """A loaded pipeline, and those for its other tasks, of the same models."""

    def __init__(self, whole: DiffusionPipeline, calls: dict[Task, Call], mesh: Mesh) -> None:
        self.whole = whole
        self._calls = calls
        self.device = mesh.device
        self.lora = Adapters(whole)
        self._pipelines = {call.signature.name: _sibling(whole, call) for call in calls.values()}

    def describe(self) -> str:
        return f"{type(self.whole).__name__} on {self.device}, {self.whole.dtype}"

    def encode(self, sample: SampleSpec) -> None:
        """Nothing: the pipeline's call encodes the prompt."""

    def begin(self, sample: SampleSpec, conditioning: None) -> GenericSession:
        call = self._calls[sample.task]
        pipeline = self._pipelines[call.signature.name]
        course = Course(self._work(pipeline, call, sample))
        session = GenericSession(spec=sample, course=course)
        if call.stepped:
            course.resume()
        return session

    def _work(
        self, pipeline: DiffusionPipeline, call: Call, sample: SampleSpec
    ) -> Callable[[Course], Any]:
        """The whole call for one sample."""

        def work(course: Course) -> Any:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)  # of a thread too
            mine = _own(pipeline, sample.sampling.flow_shift)
            arguments = dict(call.arguments(sample.prompt, sample.sampling))
            arguments |= _pictures(call, sample)
            if "generator" in call.parameters:
                arguments["generator"] = torch.Generator("cpu").manual_seed(sample.sampling.seed)
            arguments |= _hooks(mine, call, course)
            return made_of(mine(**arguments), mine)

        return work

    def step(self, batch: Sequence[GenericSession]) -> None:
        for session in batch:
            session.advance()

    def decodes_together(self, sessions: Sequence[GenericSession]) -> bool:
        return False

    def decode(self, sessions: Sequence[GenericSession]) -> Sequence[Frames | Clip]:
        for session in sessions:
            session.finish()
        return [session.course.result for session in sessions]

    def preview(self, session: GenericSession) -> Frames:
        raise NotImplementedError  # no session has an estimate

    def weights(self) -> dict[str, int]:
        return weight_bytes(self.whole.components)


def load(directory: Path, config: EngineConfig, mesh: Mesh) -> GenericFamily:
    """The pipeline in `directory`, whole, on this rank's device; safetensors only."""
    if mesh.several:
        raise ConfigError(
            f"{directory} runs by its pipeline's own call, which ranks cannot share. Give every "
            "replica one rank (--dp-size), and leave --vae-parallel out.",
            param="num_gpus",
        )
    calls = calls_of(directory)
    kind = getattr(diffusers, next(iter(calls.values())).signature.name)
    return GenericFamily(
        load_pipeline(kind, directory, _uniform(config, mesh.device), mesh), calls, mesh
    )


def _uniform(config: EngineConfig, device: torch.device) -> EngineConfig:
    """With the VAE in the precision of the rest unless told otherwise: a pipeline's call hands
    latents to it as they are."""
    model = config.model
    if model.vae_precision != "auto":
        return config
    usual: Precision = "bf16" if device.type == "cuda" else "fp32"
    precision = usual if model.dit_precision == "auto" else model.dit_precision
    model = msgspec.structs.replace(model, vae_precision=precision)
    return msgspec.structs.replace(config, model=model)


# ---------------------------------------------------------------------- pipelines beside the first


def _sibling(whole: DiffusionPipeline, call: Call) -> DiffusionPipeline:
    """The pipeline of `call`, of the same components; the loaded one itself if it is that."""
    name = call.signature.name
    if type(whole).__name__ == name:
        return whole
    takes = {*call.signature.components, *call.signature.optional}
    given = {**whole.config, **whole.components}
    made: DiffusionPipeline = getattr(diffusers, name)(
        **{part: value for part, value in given.items() if part in takes}
    )
    return made


def _own(pipeline: DiffusionPipeline, flow_shift: float | None) -> DiffusionPipeline:
    """A copy for one call, with samplers of its own: pipelines keep what they compute on
    themselves."""
    memo: dict[int, Any] = {id(part): part for part in _shared(pipeline)}
    if flow_shift is not None:
        memo[id(pipeline.scheduler)] = own(pipeline.scheduler, flow_shift)
    return copy.deepcopy(pipeline, memo)


def _shared(pipeline: DiffusionPipeline) -> Iterator[object]:
    """What the copy shares with it, and its inner pipelines' with them."""
    for value in vars(pipeline).values():
        if isinstance(value, DiffusionPipeline):
            yield from _shared(value)
        elif isinstance(value, SHARED):
            yield value


# ------------------------------------------------------------------------------- arguments of calls


def _pictures(call: Call, sample: SampleSpec) -> dict[str, Image.Image]:
    """The input picture and its mask; of the size asked for, where the call is not told it."""
    given = dict(zip([call.picture], sample.inputs.images, strict=False))
    if sample.inputs.mask is not None:
        given["mask_image"] = sample.inputs.mask
    size = (sample.sampling.width, sample.sampling.height)
    pictures = {}
    for name, picture in given.items():
        pixels = inputs.image(picture)
        if not call.sized and pixels.size != size:
            pixels = pixels.resize(size, Image.Resampling.LANCZOS)
        pictures[str(name)] = pixels
    return pictures


def _hooks(pipeline: DiffusionPipeline, call: Call, course: Course) -> dict[str, Any]:
    """Have the pipeline tell the course of its steps; the arguments that do.

    Its progress bars do: they are told in every pipeline when a loop begins, how long it is, and
    when a step is done. Where there are inner pipelines, the last of them makes the result.
    """
    inner = [value for value in vars(pipeline).values() if isinstance(value, DiffusionPipeline)]
    for one in (pipeline, *inner):
        one.progress_bar = _silent
    new_style = "callback_on_step_end" in call.parameters
    old_style = "callback" in call.parameters and not new_style
    if call.stepped:
        # The old callback comes after the bar has moved, and has the step's latents.
        count = _ignore if old_style else course.step
        (inner or [pipeline])[-1].progress_bar = _telling(course, count)
    if new_style:
        return {"callback_on_step_end": _keeping(course)}
    if old_style:
        every = {"callback_steps": 1} if "callback_steps" in call.parameters else {}
        return {"callback": _counting(course), **every}
    return {}


def _ignore(count: int) -> None:
    pass


def _silent(iterable: Any = None, total: int | None = None, **options: object) -> Bar:
    return Bar(iterable, _ignore)


def _telling(course: Course, step: Callable[[int], None]) -> Callable[..., Bar]:
    def progress_bar(iterable: Any = None, total: int | None = None, **options: object) -> Bar:
        course.begin(len(iterable) if total is None else total)
        return Bar(iterable, step)

    return progress_bar


def _keeping(course: Course) -> Callable[..., dict[str, Any]]:
    def on_step_end(
        pipeline: object, index: int, timestep: object, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        course.keep(tensors.get("latents"))
        return tensors

    return on_step_end


def _counting(course: Course) -> Callable[[int, object, object], None]:
    def callback(index: int, timestep: object, latents: object) -> None:
        course.keep(latents)
        course.step()

    return callback
