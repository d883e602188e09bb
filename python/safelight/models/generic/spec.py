"""The card of any diffusers pipeline, from its JSON files and the source of its class. Needs no
torch.

Where the pipeline checks more than can be read off, its own `ValueError` fails the one sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from safelight.errors import InvalidRequest
from safelight.models.card import NOTHING, ModelCard, Range, frame_count
from safelight.models.generic.calls import Call, calls_of
from safelight.models.generic.shape import NO_SIZE, Shape, shape
from safelight.models.registry import pipeline_class
from safelight.models.specs import shiftable
from safelight.parallel import encoders
from safelight.parallel.layout import Capabilities
from safelight.request import Inputs, Sampling, Task

LEAST_SIDE = 64  # pixels: what U-Nets halve again and again keeps a size
MOST_SIDE = 4096
MOST_TOKENS = 16  # times those of the default size
MOST_FRAMES = 8  # times the default
DEFAULT_FRAMES = 16  # and the first
DEFAULT_FPS = 24
DEFAULT_STEPS = 50  # of a pipeline that says nothing

WHOLE = "is run by the pipeline's own call"
REWIRES = "changes its model for the time of a call"


class GenericCard(ModelCard, frozen=True, kw_only=True):
    """A checkpoint whose tasks are different pipelines, with different parameters."""

    task_parameters: dict[Task, tuple[str, ...]]
    """As `parameters`, by task."""
    sized_by_picture: tuple[Task, ...] = ()
    """Tasks whose pipeline takes the size of its picture."""
    fixed_steps: tuple[Task, ...] = ()
    """Tasks whose pipeline does not take a number of steps."""

    def size_for(self, task: Task, inputs: Inputs) -> tuple[int, int] | None:
        if task not in self.sized_by_picture or not inputs.images:
            return None
        width, height = inputs.images[0].size
        return self.width.nearest(width)[0], self.height.nearest(height)[0]

    def resolve(
        self,
        values: Mapping[str, Any],
        *,
        strict: bool = True,
        task: Task | None = None,
        inputs: Inputs = NOTHING,
    ) -> Sampling:
        """As of any card; a parameter that only another task has a use for is refused."""
        task = task or self.task_for(None, inputs, frame_count(values.get("num_frames")))
        own = self.task_parameters.get(task, self.parameters)
        card = msgspec.structs.replace(self, parameters=own)
        return super(GenericCard, card).resolve(values, strict=strict, task=task, inputs=inputs)

    def check(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> None:
        super().check(sampling, task, inputs)
        usual = {**self.defaults, **self.task_defaults.get(task, {})}["num_inference_steps"]
        if task in self.fixed_steps and sampling.num_inference_steps != usual:
            raise InvalidRequest(
                f"'num_inference_steps' has no effect on {task} of {self.name}. Leave it out.",
                param="num_inference_steps",
            )


def card(directory: Path, name: str) -> GenericCard:
    """The card of the pipeline in `directory`. Raises `ConfigError` if it cannot be served."""
    calls, dims = calls_of(directory), shape(directory)
    call = next(iter(calls.values()))
    defaults = _defaults(call, dims)
    width, height = _sides(defaults["width"], dims), _sides(defaults["height"], dims)
    frames = _frame_range(defaults["num_frames"], dims) if call.output == "video" else Range(1, 1)
    side = dims.spatial * dims.patch
    shift = ("flow_shift",) if shiftable_here(directory) else ()
    used = {task: (*_used(one), *shift) for task, one in calls.items()}
    one = GenericCard(
        name=name,
        family="generic",
        path=str(directory),
        tasks=tuple(calls),
        parameters=tuple(dict.fromkeys(name for names in used.values() for name in names)),
        task_parameters=used,
        max_images=1 if any(one.picture for one in calls.values()) else 0,
        defaults=defaults,
        task_defaults={
            task: _difference(_defaults(one, dims), defaults)
            for task, one in calls.items()
            if one is not call
        },
        limits=_limits(calls),
        width=width,
        height=height,
        num_frames=frames,
        max_tokens=1,
        patch=(dims.temporal, side, side),
        sized_by_picture=tuple(task for task, one in calls.items() if not one.sized),
        fixed_steps=tuple(
            task for task, one in calls.items() if not one.parameter("num_inference_steps")
        ),
    )
    most = MOST_TOKENS * max(1, one.tokens(one.fill({})))
    return msgspec.structs.replace(one, max_tokens=most)


def capabilities(directory: Path) -> Capabilities:
    """Nothing can be shared out: the pipeline's own call runs on one rank."""
    return Capabilities(
        transformer=pipeline_class(directory),
        heads=1,
        width=shape(directory).width,
        feed_forward=4 * shape(directory).width,
        sequence=False,
        guided=False,
        encoders_whole=dict.fromkeys(encoders.text_encoders(directory), WHOLE),
    )


def shiftable_here(directory: Path) -> bool:
    """Whether `flow_shift` has an effect; some pipelines have no scheduler of that name."""
    path = directory / "scheduler" / "scheduler_config.json"
    return path.is_file() and shiftable(directory)


def _used(call: Call) -> tuple[str, ...]:
    """Fields of `Sampling` with an effect, beside those that every model has."""
    video = ("fps",) if call.output == "video" else ()
    always = ("width", "height", "num_frames", "num_inference_steps")
    used = (name for name in (*call.used(), *video) if name not in always)
    return tuple(dict.fromkeys(used))


def _defaults(call: Call, dims: Shape) -> dict[str, Any]:
    """Of the pipeline's `__call__`; sizes that it leaves open are those of its denoiser."""
    found = {name: value for name in call.used() if (value := call.default(name)) is not None}
    width, height = dims.size or (NO_SIZE, NO_SIZE)
    found = {"width": width, "height": height, "num_inference_steps": DEFAULT_STEPS, **found}
    if call.output == "video":
        frames = dims.frames or 1 + math.lcm(DEFAULT_FRAMES, dims.temporal)
        found = {"num_frames": frames, "fps": DEFAULT_FPS, **found}
        found["fps"] = round(found["fps"])
    else:
        found["num_frames"] = 1
    return found


def _difference(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if others.get(name) != value}


def _sides(default: int, dims: Shape) -> Range:
    """Multiples of the grid, or of what the default is one of."""
    step = math.gcd(dims.grid, default)
    least = min(default, math.ceil(LEAST_SIDE / step) * step)
    return Range(least, MOST_SIDE // step * step, step)


def _frame_range(default: int, dims: Shape) -> Range:
    step = dims.temporal
    most = MOST_FRAMES * default
    if (default - 1) % step == 0:
        return Range(1, 1 + most // step * step, step)
    return Range(step, most // step * step, step) if default % step == 0 else Range(1, most)


def _limits(calls: Mapping[Task, Call]) -> dict[str, str]:
    """What these pipelines cannot do here, for people."""
    found = {
        "batching": ["every sample has forwards of its own: the pipeline's own call makes it"],
        "parallelism": ["whole replicas only (--dp-size)"],
    }
    for task, call in calls.items():
        for limit, text in _limits_of(call):
            found.setdefault(limit, []).append(f"{task}: {call.signature.name} {text}")
    return {limit: "; ".join(texts) for limit, texts in found.items()}


def _limits_of(call: Call) -> Iterator[tuple[str, str]]:
    if not call.stepped:
        why = REWIRES if call.signature.rewires else "does not tell its steps"
        yield "progress", f"{why}, so all of its work is one step"
        yield "preemption", f"{why}, so it runs to its end once it has begun"
    elif call.signature.loops > 1 or call.signature.nested:
        yield "progress", "has several loops; the steps of one are counted"
    if "generator" not in call.parameters:
        yield "seed", "takes no seed: no result can be made again"
    if "prompt" not in call.parameters:
        yield "prompt", "takes no prompt: it is ignored"
