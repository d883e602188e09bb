"""The model card: what a model can do, its defaults and limits. Needs no torch.

The entrypoint checks requests against it before anything is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from safelight import fields
from safelight.errors import ConfigError, InvalidRequest, UnknownField
from safelight.request import TASKS, Inputs, Output, Sampling, Task

ALWAYS = ("width", "height", "num_frames", "num_inference_steps", "seed")
"""Sampling parameters that every model has a use for, or a range of."""

NOTHING = Inputs()
"""No input pictures."""


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Inclusive bounds and a grid: legal values are `min + k * step`."""

    min: int
    max: int
    step: int = 1

    def __contains__(self, value: int) -> bool:
        return self.min <= value <= self.max and (value - self.min) % self.step == 0

    def nearest(self, value: int) -> tuple[int, ...]:
        """The one or two legal values around `value`."""
        low = self.min + max(0, min(value, self.max) - self.min) // self.step * self.step
        return (low,) if low == value or low + self.step > self.max else (low, low + self.step)

    def around(self, value: int, reach: int) -> range:
        """The legal values at most `reach` steps from a legal one."""
        first = max(self.min, value - reach * self.step)
        return range(first, min(self.max, value + reach * self.step) + 1, self.step)

    def narrowed(self, low: int, high: int) -> Range:
        """The part of the range within [low, high], on the same grid."""
        first = self.min + max(0, math.ceil((low - self.min) / self.step)) * self.step
        return Range(first, min(high, self.max), self.step)


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One model as clients see it."""

    name: str
    family: str
    path: str
    tasks: tuple[Task, ...]
    parameters: tuple[str, ...] = ()
    """Fields of `Sampling` that have an effect, beside `ALWAYS`; others are refused."""
    min_images: int = 1
    """Fewest input pictures of a request that is made from pictures."""
    max_images: int = 0
    """Most input pictures of a request."""
    defaults: dict[str, Any]
    """Values of `Sampling` fields that a request leaves out (without `seed`)."""
    task_defaults: dict[Task, dict[str, Any]] = {}
    """Where those of a task are others."""
    limits: dict[str, str] = {}
    """What the model cannot do here, and why, for people: `preemption`, `progress`, …"""
    width: Range
    height: Range
    num_frames: Range
    max_tokens: int
    """Most transformer tokens of one sample."""
    patch: tuple[int, int, int]
    """Frames, rows and columns of pixels behind one transformer token (time as the VAE
    compresses it: the first frame stands alone)."""
    rehearsed: bool = True
    """Whether the ranks try it out before they serve; not where a picture costs money."""
    alone: bool = False
    """Whether no two samples share a forward: each has a step cache of its own."""
    shards: int = 1
    """Ranks that share the tokens of one sample."""
    even_shards: bool = False
    """Whether they must get equally many."""

    def makes(self, output: Output) -> bool:
        """Whether it makes pictures, or videos."""
        return bool(set(TASKS[output]) & set(self.tasks))

    def tokens(self, sampling: Sampling, inputs: Inputs = NOTHING) -> int:
        """Transformer tokens of one forward of one sample: the cost model's unit."""
        time, rows, columns = self.patch
        latent_frames = (sampling.num_frames - 1) // time + 1
        return latent_frames * (sampling.height // rows) * (sampling.width // columns)

    def batch_key(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> str:
        """Samples with equal keys may share a forward, at whatever steps they are."""
        pictures = "".join(f"+{picture.width}x{picture.height}" for picture in inputs.images)
        return (
            f"{self.name}/{task}/{sampling.num_frames}x{sampling.height}x{sampling.width}"
            f"/{sampling.max_sequence_length}{pictures}"
        )

    def size_for(self, task: Task, inputs: Inputs) -> tuple[int, int] | None:
        """(width, height) of the output when the request names neither; None: the defaults."""
        return None

    def able(self, output: Output | None, inputs: Inputs) -> list[Task]:
        """What of its tasks makes such an output, or any, from such inputs; videos first."""
        if inputs.mask is not None:
            wanted: tuple[Task, ...] = ("inpainting",)
        elif inputs.images:
            wanted = ("image-to-video", "image-to-image")
        else:
            wanted = ("text-to-video", "text-to-image")
        if output is not None:
            wanted = tuple(task for task in wanted if task in TASKS[output])
        return [task for task in wanted if task in self.tasks]

    def task_for(self, output: Output | None, inputs: Inputs, num_frames: int | None) -> Task:
        """What is asked for: by what it is made from, and what it shall become.

        Where both are possible, one frame makes a picture. Raises `InvalidRequest` if the model
        cannot do it.
        """
        able = self.able(output, inputs)
        if not able:
            given = "a mask" if inputs.mask else "an input image" if inputs.images else "a prompt"
            what = f"{output or 'anything'} from {given}" + ("" if inputs.images else " alone")
            why = f" ({self.limits['tasks']})" if "tasks" in self.limits else ""
            raise InvalidRequest(
                f"{self.name} cannot make {what}; it does {', '.join(self.tasks)}{why}.",
                param="model",
            )
        frames = num_frames or self.defaults.get("num_frames", 1)
        return able[-1] if frames == 1 else able[0]

    def resolve(
        self,
        values: Mapping[str, Any],
        *,
        strict: bool = True,
        task: Task | None = None,
        inputs: Inputs = NOTHING,
    ) -> Sampling:
        """A full `Sampling` from what the user gave; the card's defaults fill the rest.

        Raises `UnknownField` or `InvalidRequest` with the field, the value and what would fit.
        """
        task = task or self.task_for(None, inputs, frame_count(values.get("num_frames")))
        sampling = self.fill(values, strict=strict, task=task, inputs=inputs)
        self.check_used(values, sampling)
        self.check(sampling, task, inputs)
        return sampling

    def fill(
        self,
        values: Mapping[str, Any],
        *,
        strict: bool = True,
        task: Task | None = None,
        inputs: Inputs = NOTHING,
    ) -> Sampling:
        """As `resolve`, but whether the model can make it is not asked."""
        known = [f.name for f in fields.declared(Sampling)]
        fields.refuse_unknown(values, known, what="sampling parameter", error=UnknownField)
        given = {key: value for key, value in values.items() if value is not None}
        task = task or self.tasks[0]
        defaults = {**self.defaults, **self.task_defaults.get(task, {})}
        if task in TASKS["image"]:
            defaults["num_frames"] = 1
        if not {"width", "height"} & given.keys() and (size := self.size_for(task, inputs)):
            defaults["width"], defaults["height"] = size
        return fields.convert(Sampling, {**defaults, **given}, strict=strict)

    def nearest(self, sampling: Sampling) -> dict[str, int]:
        """The legal width, height and number of frames nearest to those of `sampling`."""
        found = {}
        for name in ("width", "height", "num_frames"):
            legal: Range = getattr(self, name)
            value: int = getattr(sampling, name)
            found[name] = min(legal.nearest(value), key=lambda near: abs(near - value))
        return found

    def check_used(self, given: Mapping[str, Any], sampling: Sampling) -> None:
        """Raise `InvalidRequest` for a parameter without an effect, unless it asks for none."""
        used = {*ALWAYS, *self.parameters}
        for name in given:
            if given[name] is None or name in used:
                continue
            if _asks_nothing(name, getattr(sampling, name)):
                continue
            others = ", ".join(sorted(used - {"seed"}))
            raise InvalidRequest(
                f"'{name}' has no effect on {self.name}, which takes {others}. Leave it out.",
                param=name,
                code="unsupported_parameter",
            )

    def check(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> None:
        """Raise `InvalidRequest` unless this model can make it."""
        if task not in self.tasks:
            raise InvalidRequest(
                f"{self.name} cannot do {task}; it does {', '.join(self.tasks)}.", param="model"
            )
        if task in TASKS["image"] and sampling.num_frames != 1:
            raise InvalidRequest(
                f"'num_frames' is {sampling.num_frames}; an image has 1.", param="num_frames"
            )
        self._check_inputs(task, inputs)
        for name in ("width", "height", "num_frames"):
            self.check_range(name, getattr(sampling, name))
        if (tokens := self.tokens(sampling, inputs)) > self.max_tokens:
            raise InvalidRequest(
                f"{_described(sampling, inputs)} is {tokens} tokens; {self.name} takes at most "
                f"{self.max_tokens}. Ask for fewer frames or a smaller size.",
                param="size",
            )
        self._check_shards(sampling, inputs)

    def check_range(self, name: str, value: int) -> None:
        """Raise `InvalidRequest` unless `width`, `height` or `num_frames` may be `value`."""
        legal: Range = getattr(self, name)
        if value not in legal:
            near = " or ".join(str(v) for v in legal.nearest(value))
            raise InvalidRequest(
                f"'{name}' is {value}; {self.name} takes {legal.min} to {legal.max} in steps "
                f"of {legal.step}. Nearest: {near}.",
                param=name,
            )

    def _check_inputs(self, task: Task, inputs: Inputs) -> None:
        if task in ("text-to-image", "text-to-video"):
            return
        if not inputs.images:
            raise InvalidRequest(f"'image' is missing; {task} needs one.", param="image")
        if task == "inpainting" and inputs.mask is None:
            raise InvalidRequest("'mask' is missing; inpainting needs one.", param="mask")
        if len(inputs.images) > self.max_images:
            raise InvalidRequest(
                f"{len(inputs.images)} input images; {self.name} takes at most {self.max_images}.",
                param="image",
            )
        if inputs.mask is not None and inputs.mask.size != inputs.images[0].size:
            sizes = ["x".join(map(str, one.size)) for one in (inputs.mask, inputs.images[0])]
            raise InvalidRequest(
                f"'mask' is {sizes[0]}, its image {sizes[1]}; give both one size.", param="mask"
            )

    def _check_length(self, sampling: Sampling, most: int) -> None:
        """That the prompt is no longer than that; for families whose pipelines have a bound."""
        if sampling.max_sequence_length > most:
            raise InvalidRequest(
                f"'max_sequence_length' is {sampling.max_sequence_length}; {self.name} takes at "
                f"most {most}.",
                param="max_sequence_length",
            )

    def _check_shards(self, sampling: Sampling, inputs: Inputs) -> None:
        """That the ranks can share the tokens as the layout wants them shared."""
        tokens = self.tokens(sampling, inputs)
        if self._shares(tokens):
            return
        how = "evenly " if self.even_shards else ""
        near = " or ".join(f"{w}x{h}" for w, h in self._sizes_that_share(sampling, inputs))
        raise InvalidRequest(
            f"{_described(sampling, inputs)} is {tokens} tokens, which {self.shards} ranks "
            f"(--ulysses-degree × --ring-degree) cannot share {how}here. Nearest sizes that "
            f"fit: {near or 'none; change num_frames'}.",
            param="size",
        )

    def _shares(self, tokens: int) -> bool:
        return tokens >= self.shards and not (self.even_shards and tokens % self.shards)

    def _sizes_that_share(self, sampling: Sampling, inputs: Inputs) -> list[tuple[int, int]]:
        """The legal sizes of as many frames nearest to the one asked for, at most three."""
        reach = self.shards + 1
        found = []
        for width in self.width.around(sampling.width, reach):
            for height in self.height.around(sampling.height, reach):
                size = msgspec.structs.replace(sampling, width=width, height=height)
                tokens = self.tokens(size, inputs)
                if tokens <= self.max_tokens and self._shares(tokens):
                    distance = abs(width - sampling.width) + abs(height - sampling.height)
                    found.append((distance, (width, height)))
        return [size for _, size in sorted(found)[:3]]


def _asks_nothing(name: str, value: Any) -> bool:
    """Whether a model without this parameter does as it is told: programs send such values to
    every model."""
    if name == "negative_prompt":
        return value == ""
    return name in ("guidance_scale", "guidance_scale_2", "true_cfg_scale") and value <= 1


def frame_count(value: object) -> int | None:
    """A number of frames if it can be read as one; if not, it is refused where it is converted."""
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and value.isdecimal() else None


def _described(sampling: Sampling, inputs: Inputs) -> str:
    frames = "1 frame" if sampling.num_frames == 1 else f"{sampling.num_frames} frames"
    given = " and these input images" if inputs.images else ""
    return f"{sampling.width}x{sampling.height} with {frames}{given}"


class CardOverrides(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`safelight.json` in a model directory: what its author knows better than the family."""

    name: str | None = None
    family: str | None = None
    """The plug-in that runs a model with its own code, which has no pipeline class."""
    defaults: dict[str, Any] = {}
    limits: dict[str, tuple[int, int]] = {}
    """`width`, `height`, `num_frames` -> [least, most]."""

    @staticmethod
    def read(directory: Path) -> CardOverrides:
        path = directory / "safelight.json"
        if not path.is_file():
            return CardOverrides()
        try:
            return msgspec.json.decode(path.read_bytes(), type=CardOverrides)
        except msgspec.DecodeError as failure:
            raise ConfigError(f"{path} is not valid: {failure}") from failure

    def apply(self, card: ModelCard) -> ModelCard:
        ranges = {}
        for name, bounds in self.limits.items():
            if name not in ("width", "height", "num_frames"):
                raise ConfigError(f"safelight.json limits '{name}', which has no range.")
            ranges[name] = getattr(card, name).narrowed(*bounds)
            if ranges[name].min > ranges[name].max:
                raise ConfigError(f"safelight.json leaves no legal '{name}'.")
        return msgspec.structs.replace(card, defaults={**card.defaults, **self.defaults}, **ranges)
