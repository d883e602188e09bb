"""What the pipelines of a checkpoint can be asked for, and with which arguments. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safelight.errors import ConfigError
from safelight.models.generic import signature
from safelight.models.generic.signature import Default, Signature
from safelight.models.registry import PLUGINS, pipeline_class
from safelight.request import Sampling, Task

FIELDS: Mapping[str, tuple[str, ...]] = {
    "width": ("width",),
    "height": ("height",),
    "num_frames": ("num_frames", "video_length"),
    "fps": ("fps", "frame_rate"),
    "num_inference_steps": ("num_inference_steps",),
    "guidance_scale": ("guidance_scale",),
    "guidance_scale_2": ("guidance_scale_2",),
    "true_cfg_scale": ("true_cfg_scale",),
    "strength": ("strength",),
    "max_sequence_length": ("max_sequence_length",),
    "negative_prompt": ("negative_prompt",),
}
"""Field of `Sampling` -> what pipelines call it."""

PICTURES = ("image", "images", "control_image")
"""What pipelines call their input picture."""

NEEDED = ("fps", "num_inference_steps", "guidance_scale", "max_sequence_length")
"""Fields that always have a value: they stand for a parameter only if its default is a number."""

_FROM_PICTURES = re.compile(
    r"Img2Img|(Image|Video)To|Image2|(?<!T)I2|Edit|Inpaint|Fill|Variation|Pix2Pix|Upscale"
    r"|SuperResolution|Refiner|Control|Adapter|PIA"
)
"""Names of classes that do nothing without a picture, even where its parameter is optional."""


@dataclass(frozen=True)
class Call:
    """One pipeline class and what it can be asked for."""

    signature: Signature

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self.signature.parameters

    @cached_property
    def picture(self) -> str | None:
        """The parameter of its input picture."""
        return next((name for name in PICTURES if name in self.parameters), None)

    @cached_property
    def output(self) -> str:
        """`image`, `video`, or nothing that we can deliver."""
        made = self.signature.results
        if not made:
            return "video" if self.parameter("num_frames") else "image"
        if not set(made) & set(signature.RESULTS):
            return ""
        video = {"frames", "video"} & set(made) or self.parameter("num_frames")
        return "video" if video else "image"

    @property
    def sized(self) -> bool:
        """Whether it is told the size; otherwise it takes that of its picture."""
        return {"width", "height"} <= self.parameters.keys()

    @property
    def stepped(self) -> bool:
        """Whether it can be stopped between its steps."""
        counted = self.signature.loops or self.signature.nested
        return bool(counted) and not self.signature.rewires

    def parameter(self, field: str) -> str | None:
        """What it calls a field of `Sampling`; None if it has no use for it."""
        name = next((name for name in FIELDS[field] if name in self.parameters), None)
        if name is not None and field in NEEDED and not _is_number(self.parameters[name]):
            return None
        return name

    def default(self, field: str) -> Any:
        """Its default of a field of `Sampling`; None if there is none, or none of ours."""
        name = self.parameter(field)
        value = None if name is None else self.parameters[name]
        if value is None:
            value = self.signature.sizes.get(field)
        if isinstance(value, Default) or (field == "negative_prompt" and value is None):
            return None
        return value

    def tasks(self) -> tuple[Task, ...]:
        """Raises `ConfigError` if there are none."""
        if reason := self.why_not():
            raise ConfigError(f"{self.signature.name} {reason}, so it cannot be served.")
        if self.output == "video":
            pair: tuple[Task, Task] = ("text-to-video", "image-to-video")
        else:
            pair = ("text-to-image", "image-to-image")
        if "mask_image" in self.parameters:
            return ("inpainting",)
        if self.picture is None:
            return pair[:1]
        return pair[1:] if self._needs_picture() else pair

    def _needs_picture(self) -> bool:
        picture, name, names = str(self.picture), self.signature.name, list(self.parameters)
        if "prompt" not in names or self.parameters[picture] is Default.REQUIRED:
            return True
        if signature.makes_from_text(name) and "Control" not in name:
            return False
        first = names.index(picture) < names.index("prompt")
        return first or "strength" in names or bool(_FROM_PICTURES.search(name))

    def why_not(self) -> str:
        """Why no request can be made of it; empty if one can."""
        names = list(self.parameters)
        if not self.output:
            return f"makes {', '.join(self.signature.results)}, not pictures or videos"
        if "Prior" in self.signature.name:
            return "makes what another pipeline turns into pictures"
        known = {"prompt", "mask_image", *PICTURES}.union(*FIELDS.values())
        wanted = [n for n in names if self.parameters[n] is Default.REQUIRED and n not in known]
        if "control_video" in names:
            wanted.append("control_video")
        if "video" in names and "image" not in names and names[0] == "video":
            wanted.append("video")
        if "image" in names and "control_image" in names:
            wanted.append("control_image beside image")
        if wanted:
            return f"wants {', '.join(dict.fromkeys(wanted))}, which no request can carry"
        if "prompt" not in names and self.picture is None:
            return "takes neither a prompt nor a picture"
        if not self.sized and self.picture is None:
            return "takes no width and height"
        if "mask_image" in names and (self.picture is None or self.output == "video"):
            return "wants a mask of something other than one picture"
        return ""

    def used(self) -> tuple[str, ...]:
        """Fields of `Sampling` that it has a use for."""
        return tuple(field for field in FIELDS if self.parameter(field))

    def arguments(self, prompt: str, sampling: Sampling) -> Iterator[tuple[str, Any]]:
        """Its arguments for a sample, without pictures and generator; where the sample leaves
        something out, so does the call."""
        if "prompt" in self.parameters:
            yield "prompt", prompt
        for field in self.used():
            value, name = getattr(sampling, field), str(self.parameter(field))
            if value is None or (value == "" and not self.default(field)):
                continue
            yield name, value
        if "output_type" in self.parameters:
            yield "output_type", "np"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def calls_of(directory: Path) -> dict[Task, Call]:
    """What the checkpoint in `directory` can do, and by which pipeline; its own class first.

    Raises `ConfigError` if diffusers has no such class, or it does nothing that we can ask for.
    """
    name = pipeline_class(directory)
    own = signature.read(name)
    if own is None:
        raise ConfigError(
            f"diffusers {signature.version()} has no pipeline class '{name}'. A newer one may have "
            f"it; an installed package can bring it, with an entry point '{name}' in the group "
            f"'{PLUGINS}'.",
            param="model_path",
        )
    call = Call(own)
    found = dict.fromkeys(call.tasks(), call)
    parts = {*own.components, *own.optional}
    for other in map(signature.read, signature.siblings(name)):
        if other is None or not parts.issuperset(other.components):
            continue
        sibling = Call(other)
        for task in () if sibling.why_not() else sibling.tasks():
            found.setdefault(task, sibling)
    return found
