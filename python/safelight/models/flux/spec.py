"""FLUX.1's model cards, read from the pipeline's JSON files. Needs no torch.

Defaults are those of the pipelines' `__call__` (dev: 1024x1024, 28 steps, guidance 3.5); of a
transformer without embedded guidance (schnell) four steps, for which it was distilled, and no
guidance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safelight.errors import ConfigError, InvalidRequest
from safelight.models import plans, specs, strength
from safelight.models.card import NOTHING, Range
from safelight.models.joint import JointCard, Size
from safelight.models.registry import pipeline_class
from safelight.parallel.layout import Capabilities
from safelight.request import Inputs, Sampling, Task

MAX_SIDE = 4096  # 256 tokens of 16 pixels: beyond, their positions are not exact in bf16
MAX_TEXT = 512  # prompt tokens; `FluxPipeline.check_inputs` wants no more

_WIDE = [(1568, 672), (1504, 688), (1456, 720), (1392, 752), (1328, 800), (1248, 832)]
_WIDE += [(1184, 880), (1104, 944)]
PREFERRED: list[Size] = [
    *((height, width) for width, height in _WIDE),
    (1024, 1024),
    *reversed(_WIDE),
]
"""(width, height) that Kontext was trained on, narrowest first."""


def preferred(size: Size, step: int) -> Size:
    """The size at which Kontext sees a picture of `size`, (width, height): the nearest shape of
    those it was trained on, in multiples of `step`."""
    width, height = (side // step * step for side in size)
    _, width, height = min((abs(width / height - w / h), w, h) for w, h in PREFERRED)
    return width // step * step, height // step * step


class FluxCard(JointCard, frozen=True, kw_only=True):
    """A FLUX.1 model: pictures are changed in part, by `strength`."""

    strong: tuple[Task, ...] = ()
    """Tasks in which `strength` has an effect."""

    def check(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> None:
        super().check(sampling, task, inputs)
        self._check_guidance(sampling)
        strength.check(self.name, sampling, task, self.strong)

    def _check_guidance(self, sampling: Sampling) -> None:
        """That neither half of true guidance is given without the other, which then does
        nothing."""
        scale = sampling.true_cfg_scale or 1
        if scale > 1 and not sampling.negative_prompt:
            raise InvalidRequest(
                f"'true_cfg_scale' is {scale}, which needs a 'negative_prompt'.",
                param="true_cfg_scale",
            )
        if scale <= 1 and sampling.negative_prompt:
            raise InvalidRequest(
                f"'negative_prompt' has an effect on {self.name} if 'true_cfg_scale' is above 1, "
                "for example 4.",
                param="negative_prompt",
            )


class KontextCard(FluxCard, frozen=True, kw_only=True):
    """A model that sees a picture beside the one it makes."""

    def references(self, inputs: Inputs) -> tuple[Size, ...]:
        return tuple(preferred(picture.size, self.patch[1]) for picture in inputs.images)

    def size_for(self, task: Task, inputs: Inputs) -> Size | None:
        """Inpainting makes a picture of the size at which it sees the other; editing does not
        look."""
        small = any(min(picture.size) < self.patch[1] for picture in inputs.images)
        if task != "inpainting" or small or not inputs.images:
            return None
        return self.references(inputs)[0]

    def check(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> None:
        super().check(sampling, task, inputs)
        size = self.size_for(task, inputs)
        if size is not None and size != (sampling.width, sampling.height):
            raise InvalidRequest(
                f"{self.name} paints into this picture at {size[0]}x{size[1]}, the nearest shape "
                f"it knows, not at {sampling.width}x{sampling.height}. Leave the size out.",
                param="size",
            )

    def _check_inputs(self, task: Task, inputs: Inputs) -> None:
        super()._check_inputs(task, inputs)
        for picture in inputs.images:
            if min(picture.size) < self.patch[1]:
                self._refuse_picture(picture, f"sides of at least {self.patch[1]}")


def card(directory: Path, name: str) -> FluxCard:
    """The card of the pipeline in `directory`. Raises `ConfigError` if it is another Flux."""
    transformer = specs.config(directory, "transformer")
    vae = specs.config(directory, "vae")
    kind = pipeline_class(directory)
    _refuse_variants(kind, transformer, vae, directory)
    # Every stage of the VAE but the last halves the sides, and tokens are 2x2 latents.
    step = 2 ** len(vae["block_out_channels"])
    sides = Range(step, MAX_SIDE // step * step, step)
    embeds = bool(transformer.get("guidance_embeds", False))
    facts = _KINDS[kind](embeds)
    defaults = {
        "width": 1024,
        "height": 1024,
        "num_frames": 1,
        "num_inference_steps": 28,
        "guidance_scale": 3.5 if embeds else 0.0,
        "max_sequence_length": MAX_TEXT,
        **facts.pop("defaults", {}),
    }
    parameters = (
        *("max_sequence_length", "strength"),
        *(["guidance_scale"] if embeds else []),
        *(["negative_prompt", "true_cfg_scale"] if kind != "FluxFillPipeline" else []),
        *(["flow_shift"] if specs.shiftable(directory) else []),
    )
    return (KontextCard if kind == "FluxKontextPipeline" else FluxCard)(
        name=name,
        family="flux",
        path=str(directory),
        parameters=parameters,
        max_images=1,
        defaults=defaults,
        width=sides,
        height=sides,
        num_frames=Range(1, 1),
        # Kontext sees a picture of another megapixel at most.
        max_tokens=(sides.max // step) ** 2 + 4096,
        max_text=MAX_TEXT,
        patch=(1, step, step),
        **facts,
    )


ALL: tuple[Task, ...] = ("text-to-image", "image-to-image", "inpainting")


def _flux(embeds: bool) -> dict[str, Any]:
    """dev and schnell; from pictures, the defaults are their own pipelines'."""
    changing = {"strength": 0.6, **({"guidance_scale": 7.0} if embeds else {})}
    return {
        "tasks": ALL,
        "strong": ALL[1:],
        "defaults": {} if embeds else {"num_inference_steps": 4},
        "task_defaults": dict.fromkeys(ALL[1:], changing),
    }


def _fill(embeds: bool) -> dict[str, Any]:
    guided = {"guidance_scale": 30.0} if embeds else {}
    return {
        "tasks": ("inpainting",),
        "strong": ("inpainting",),
        "defaults": {"num_inference_steps": 50, "strength": 1.0, **guided},
    }


def _kontext(embeds: bool) -> dict[str, Any]:
    return {
        "tasks": ALL,
        "strong": ("inpainting",),
        "task_defaults": {"inpainting": {"strength": 1.0}},
    }


_KINDS = {
    "FluxPipeline": _flux,
    "FluxFillPipeline": _fill,
    "FluxKontextPipeline": _kontext,
}


def capabilities(directory: Path) -> Capabilities:
    """What of the pipeline in `directory` can be shared out over ranks."""
    transformer = specs.config(directory, "transformer")
    width = plans.heads(transformer) * transformer["attention_head_dim"]
    # No key of the config says how wide the inside is: diffusers' blocks have it so.
    return specs.capabilities(
        directory,
        width=width,
        feed_forward=4 * width,
        guided=pipeline_class(directory) != "FluxFillPipeline",
    )


def _refuse_variants(
    kind: str, transformer: dict[str, Any], vae: dict[str, Any], directory: Path
) -> None:
    """Raise `ConfigError` unless the transformer has the channels that its pipeline gives it."""
    channels, latent = transformer["in_channels"], vae["latent_channels"]
    wanted = 4 * latent
    if kind == "FluxFillPipeline":
        # The picture as well, and every pixel of the mask.
        wanted += 4 * latent + 4 ** len(vae["block_out_channels"])
    if channels != wanted:
        raise ConfigError(
            f"The transformer in {directory} takes {channels} channels, where {kind} has {wanted}: "
            "it belongs to another pipeline (Fill, Canny, Depth). Put that one's class into "
            "model_index.json."
        )
