"""FLUX.2's model cards, read from the pipeline's JSON files. Needs no torch.

Defaults are those of the pipelines' `__call__` (1024x1024, 50 steps, guidance 4); of a distilled
Klein the four steps for which it was distilled, and no guidance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safelight.errors import ConfigError
from safelight.models import plans, specs
from safelight.models.card import Range
from safelight.models.joint import JointCard, Size
from safelight.models.registry import pipeline_class, read_json
from safelight.parallel.layout import Capabilities
from safelight.request import Inputs, Picture, Task

MAX_SIDE = 4096
MAX_TEXT = 4096  # prompt tokens; the pipelines have no bound of their own
MAX_IMAGES = 10  # that FLUX.2 was trained to look at
SEEN = 1024 * 1024  # pixels at which a reference picture is seen at most
LEAST_SIDE, MOST_ASPECT = 64, 8  # of a reference picture

LAYERS = {"Flux2Pipeline": 30, "Flux2KleinPipeline": 27}
"""The last layer of the text encoder that the embeddings are taken from."""


def seen(size: Size, step: int) -> Size:
    """The size at which a picture of `size`, (width, height), is seen: at most a megapixel, in
    multiples of `step`."""
    width, height = size
    if width * height > SEEN:
        scale = math.sqrt(SEEN / (width * height))
        width, height = int(width * scale), int(height * scale)
    return width // step * step, height // step * step


class Flux2Card(JointCard, frozen=True, kw_only=True):
    """A model that sees pictures beside the one it makes, which is of the size of the first."""

    def references(self, inputs: Inputs) -> tuple[Size, ...]:
        return tuple(seen(picture.size, self.patch[1]) for picture in inputs.images)

    def size_for(self, task: Task, inputs: Inputs) -> Size | None:
        if not inputs.images or any(_fault(picture) for picture in inputs.images):
            return None
        return self.references(inputs)[0]

    def _check_inputs(self, task: Task, inputs: Inputs) -> None:
        super()._check_inputs(task, inputs)
        for picture in inputs.images:
            if fault := _fault(picture):
                self._refuse_picture(picture, fault)


def _fault(picture: Picture) -> str:
    """What a picture would have to be, as `Flux2ImageProcessor.check_image_input` has it; empty if
    it is that."""
    short, long = sorted(picture.size)
    if short < LEAST_SIDE:
        return f"sides of at least {LEAST_SIDE}"
    return "" if long / short <= MOST_ASPECT else f"sides of at most {MOST_ASPECT} to 1"


def card(directory: Path, name: str) -> Flux2Card:
    """The card of the pipeline in `directory`. Raises `ConfigError` if it is another Flux."""
    transformer = specs.config(directory, "transformer")
    vae = specs.config(directory, "vae")
    kind = pipeline_class(directory)
    _refuse_variants(kind, transformer, vae, directory)
    # Every stage of the VAE but the last halves the sides, and tokens are 2x2 latents.
    step = 2 ** len(vae["block_out_channels"])
    sides = Range(step, MAX_SIDE // step * step, step)
    distilled = _distilled(directory)
    guided = _guided(kind, transformer, distilled=distilled)
    return Flux2Card(
        name=name,
        family="flux2",
        path=str(directory),
        tasks=("text-to-image", "image-to-image"),
        parameters=(
            "max_sequence_length",
            *(["guidance_scale"] if guided else []),
            *(["flow_shift"] if specs.shiftable(directory) else []),
        ),
        max_images=MAX_IMAGES,
        defaults={
            "width": 1024,
            "height": 1024,
            "num_frames": 1,
            "num_inference_steps": 4 if distilled else 50,
            "guidance_scale": 4.0 if guided else 1.0,
            "max_sequence_length": 512,
        },
        width=sides,
        height=sides,
        num_frames=Range(1, 1),
        max_tokens=(sides.max // step) ** 2 + MAX_IMAGES * SEEN // step**2,
        max_text=MAX_TEXT,
        patch=(1, step, step),
    )


def capabilities(directory: Path) -> Capabilities:
    """What of the pipeline in `directory` can be shared out over ranks."""
    transformer = specs.config(directory, "transformer")
    width = plans.heads(transformer) * transformer["attention_head_dim"]
    halves = pipeline_class(directory) == "Flux2KleinPipeline" and not _distilled(directory)
    return specs.capabilities(
        directory,
        width=width,
        feed_forward=int(width * transformer.get("mlp_ratio", 3.0)),
        guided=halves,
    )


def _distilled(directory: Path) -> bool:
    return bool(read_json(directory / "model_index.json").get("is_distilled", False))


def _guided(kind: str, transformer: Mapping[str, Any], *, distilled: bool) -> bool:
    """Whether a guidance scale has an effect: on the two halves of Klein, or as an input of the
    transformer."""
    if kind == "Flux2KleinPipeline":
        return not distilled
    return bool(transformer.get("guidance_embeds", True))


def _refuse_variants(
    kind: str, transformer: Mapping[str, Any], vae: Mapping[str, Any], directory: Path
) -> None:
    """Raise `ConfigError` unless transformer and text encoder are those of the pipeline."""
    channels, wanted = transformer["in_channels"], 4 * vae["latent_channels"]
    if channels != wanted:
        raise ConfigError(
            f"The transformer in {directory} takes {channels} channels, where {kind} has {wanted}: "
            "it belongs to another pipeline. Put that one's class into model_index.json."
        )
    encoder = specs.config(directory, "text_encoder")
    layers = encoder.get("text_config", encoder).get("num_hidden_layers")
    if isinstance(layers, int) and layers < LAYERS[kind]:
        raise ConfigError(
            f"The text encoder in {directory} has {layers} layers; {kind} takes its embeddings "
            f"from layer {LAYERS[kind]}. Use the encoder that the transformer was trained with."
        )
