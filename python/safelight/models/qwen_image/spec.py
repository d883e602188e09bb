"""Qwen-Image's model cards, read from the pipeline's JSON files. Needs no torch.

Defaults are those of the pipelines' `__call__` (50 steps, guidance 4, strength 0.6). Without a
negative prompt there is no guidance, as there.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any, Literal

from safelight.errors import ConfigError, InvalidRequest
from safelight.models import plans, specs, strength
from safelight.models.card import NOTHING, Range
from safelight.models.joint import JointCard, Size
from safelight.models.registry import pipeline_class, read_json
from safelight.parallel.layout import Capabilities
from safelight.request import Inputs, Picture, Sampling, Task

Kind = Literal["plain", "edit", "plus"]
KINDS: dict[str, Kind] = {
    "QwenImagePipeline": "plain",
    "QwenImageImg2ImgPipeline": "plain",
    "QwenImageInpaintPipeline": "plain",
    "QwenImageEditPipeline": "edit",
    "QwenImageEditInpaintPipeline": "edit",
    "QwenImageEditPlusPipeline": "plus",
}
"""Pipelines that differ in what they do with the same components are one kind."""

MAX_SIDE = 4096  # 256 tokens of 16 pixels
MAX_TEXT = 1024  # prompt tokens; `check_inputs` wants no more
MAX_PICTURES = 16  # trained on one to three; the prompt holds about 200 tokens of each
AREA = 1024 * 1024
"""Pixels of an input picture as the VAE gets it, and of the output if no size is asked for."""
CONDITION_AREA = 384 * 384
"""Pixels of each of several input pictures as the text encoder gets them."""


def scaled(picture: Picture, area: int) -> Size:
    """(width, height) of about `area` pixels in the picture's shape, multiples of 32."""
    ratio = picture.width / picture.height
    width = math.sqrt(area * ratio)
    return round(width / 32) * 32, round(width / ratio / 32) * 32


class QwenImageCard(JointCard, frozen=True, kw_only=True):
    """A model whose forwards take samples of all tasks, with prompts of any lengths."""

    strong: tuple[Task, ...]
    """Tasks in which `strength` has an effect."""

    def batch_key(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> str:
        return self._seen_key(sampling, inputs)

    def check(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> None:
        super().check(sampling, task, inputs)
        strength.check(self.name, sampling, task, self.strong)

    def _check_text(self, length: int) -> None:
        """Prompts are padded until the ranks can share them evenly."""
        if length < self.shards:
            raise InvalidRequest(
                f"'max_sequence_length' is {length}; {self.name} takes {self.shards} to {MAX_TEXT},"
                f" as {self.shards} ranks share the prompt.",
                param="max_sequence_length",
            )


class EditCard(QwenImageCard, frozen=True, kw_only=True):
    """A model that sees its input pictures besides its noise: tokens that are not denoised."""

    def size_for(self, task: Task, inputs: Inputs) -> Size | None:
        """As large as the last picture is made; None if it cannot be made so."""
        return self._made(inputs.images[-1]) if inputs.images else None

    def _made(self, picture: Picture) -> Size | None:
        """(width, height) of the picture at `AREA` pixels; None if that is no legal size."""
        step = self.width.step
        width, height = (side // step * step for side in scaled(picture, AREA))
        return (width, height) if width in self.width and height in self.height else None

    def references(self, inputs: Inputs) -> tuple[Size, ...]:
        return tuple(scaled(picture, AREA) for picture in inputs.images)

    def check(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> None:
        self._check_shapes(inputs)
        super().check(sampling, task, inputs)
        if task == "inpainting":
            self._check_repainted(sampling, inputs)

    def _check_shapes(self, inputs: Inputs) -> None:
        """That no picture is a ribbon: each is brought to `AREA` pixels in its own shape."""
        for picture in inputs.images:
            if self._made(picture) is None:
                raise InvalidRequest(
                    f"'image' is {picture.width}x{picture.height}; {self.name} takes pictures up "
                    f"to {self.width.max**2 // AREA} times as long as wide. Crop it.",
                    param="image",
                )

    def _check_repainted(self, sampling: Sampling, inputs: Inputs) -> None:
        """The pipeline makes an output of the picture's shape, whatever is asked for."""
        made = self._made(inputs.images[0])
        if made is not None and made != (sampling.width, sampling.height):
            width, height = made
            raise InvalidRequest(
                f"'size' is {sampling.width}x{sampling.height}; inpainting with {self.name} keeps "
                f"the picture's shape, here {width}x{height}. Leave 'width' and 'height' out.",
                param="size",
            )


def card(directory: Path, name: str) -> QwenImageCard:
    """The card of the pipeline in `directory`. Raises `ConfigError` if it cannot be run."""
    kind = KINDS[pipeline_class(directory)]
    _refuse_variants(specs.config(directory, "transformer"), directory)
    if kind != "plain":
        _check_processor(directory)
    # The VAE halves the sides so often, and tokens are 2x2 latents.
    step = 2 ** len(specs.config(directory, "vae")["temperal_downsample"]) * 2
    sides = Range(step, MAX_SIDE // step * step, step)
    pictures = MAX_PICTURES if kind == "plus" else 1
    strong = TASKS[kind][1:]
    make = QwenImageCard if kind == "plain" else EditCard
    return make(
        name=name,
        family="qwen_image",
        path=str(directory),
        tasks=TASKS[kind],
        parameters=(
            *("negative_prompt", "true_cfg_scale"),
            *(["max_sequence_length"] if kind == "plain" else []),
            *(["strength"] if strong else []),
            *(["flow_shift"] if specs.shiftable(directory) else []),
        ),
        max_images=pictures,
        defaults={
            "width": 1024 // step * step,
            "height": 1024 // step * step,
            "num_frames": 1,
            "num_inference_steps": 50,
            "true_cfg_scale": 4.0,
            "max_sequence_length": 512,
        },
        task_defaults={task: {"strength": 0.6} for task in strong},
        strong=strong,
        width=sides,
        height=sides,
        num_frames=Range(1, 1),
        max_tokens=(sides.max // step) ** 2 + pictures * 2 * AREA // step**2,
        max_text=MAX_TEXT,
        patch=(1, step, step),
    )


TASKS: dict[Kind, tuple[Task, ...]] = {
    "plain": ("text-to-image", "image-to-image", "inpainting"),
    "edit": ("image-to-image", "inpainting"),
    "plus": ("image-to-image",),
}
"""The first begins with noise, the others with a picture."""


def capabilities(directory: Path) -> Capabilities:
    """What of the pipeline in `directory` can be shared out over ranks."""
    transformer = specs.config(directory, "transformer")
    width = plans.heads(transformer) * transformer["attention_head_dim"]
    # No key of the config says how wide the inside is: diffusers' blocks have it so.
    return specs.capabilities(directory, width=width, feed_forward=4 * width)


def _refuse_variants(transformer: dict[str, Any], directory: Path) -> None:
    if transformer.get("guidance_embeds"):
        raise ConfigError(
            f"The transformer in {directory} takes an embedded guidance, with which diffusers' "
            "QwenImageTransformer2DModel fails. Use a checkpoint without it."
        )
    if transformer.get("use_additional_t_cond") or transformer.get("use_layer3d_rope"):
        raise ConfigError(
            f"The transformer in {directory} is that of Qwen-Image-Layered. Use it with its "
            "QwenImageLayeredPipeline."
        )


def _check_processor(directory: Path) -> None:
    """That transformers can make the processor of pictures: it has one of videos inside."""
    library, _ = read_json(directory / "model_index.json").get("processor", (None, None))
    if library == "transformers" and importlib.util.find_spec("torchvision") is None:
        raise ConfigError(
            f"The processor in {directory} needs torchvision, which is not installed. Install the "
            "torchvision that belongs to this torch."
        )
