"""Wan's model card: what it says beside any other's. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from safelight.errors import InvalidRequest
from safelight.models.card import NOTHING, ModelCard, Range
from safelight.request import Inputs, Sampling, Task


class WanCard(ModelCard, frozen=True, kw_only=True):
    """A model that may have two experts, and may begin and end its videos with given pictures."""

    text_tokens: int | None = None
    """The only `max_sequence_length`, if the transformer knows just one."""

    def batch_key(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> str:
        # Pictures are brought to the size of the video, and what is made of them is always part of
        # the input, or never, or (Wan 2.2 TI2V) makes no difference to its shape.
        return super().batch_key(sampling, self.tasks[0])

    def size_for(self, task: Task, inputs: Inputs) -> tuple[int, int] | None:
        """The shape of the first picture, with the area of the default size."""
        if task != "image-to-video" or not inputs.images:
            return None
        shape = inputs.images[0].height / inputs.images[0].width
        area = self.defaults["width"] * self.defaults["height"]
        return (
            _fitted(math.sqrt(area / shape), self.width),
            _fitted(math.sqrt(area * shape), self.height),
        )

    def fill(
        self,
        values: Mapping[str, Any],
        *,
        strict: bool = True,
        task: Task | None = None,
        inputs: Inputs = NOTHING,
    ) -> Sampling:
        """As of any card; who gives one guidance scale means that of both experts."""
        scales = [values.get("guidance_scale"), values.get("guidance_scale_2")]
        if "guidance_scale_2" in self.parameters and scales[0] is not None and scales[1] is None:
            values = {**values, "guidance_scale_2": scales[0]}
        return super().fill(values, strict=strict, task=task, inputs=inputs)

    def check_used(self, given: Mapping[str, Any], sampling: Sampling) -> None:
        super().check_used(given, sampling)
        scale, second = sampling.guidance_scale, sampling.guidance_scale_2
        if given.get("guidance_scale_2") is not None and scale <= 1 and (second or 0) > 1:
            raise InvalidRequest(
                f"'guidance_scale_2' is {second:g}, but 'guidance_scale' is {scale:g}, which turns "
                f"the guidance of both experts off. Give 'guidance_scale' a value above 1.",
                param="guidance_scale_2",
            )

    def check(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> None:
        super().check(sampling, task, inputs)
        length = sampling.max_sequence_length
        if self.text_tokens not in (None, length):
            raise InvalidRequest(
                f"'max_sequence_length' is {length}; {self.name} tells text from pictures by their "
                f"number and takes {self.text_tokens} alone.",
                param="max_sequence_length",
            )
        if len(inputs.images) > 1 and sampling.num_frames == 1:
            raise InvalidRequest(
                f"'num_frames' is 1; a first and a last picture need at least "
                f"{1 + self.num_frames.step}.",
                param="num_frames",
            )

    def _check_inputs(self, task: Task, inputs: Inputs) -> None:
        super()._check_inputs(task, inputs)
        if task == "image-to-video" and len(inputs.images) < self.min_images:
            raise InvalidRequest(
                f"{len(inputs.images)} input image; {self.name} takes {self.min_images}, the first "
                "frame and the last.",
                param="image",
            )


def _fitted(length: float, legal: Range) -> int:
    """The largest legal value up to `length`, as those who use Wan reckon it."""
    return legal.nearest(round(length))[0]
