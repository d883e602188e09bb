"""Flux's model card, read from the pipeline's JSON files. Needs no torch.

Defaults are those of `FluxPipeline.__call__` (1024x1024, 28 steps, guidance 3.5); of a transformer
without embedded guidance (schnell) four steps, for which it was distilled, and no guidance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safelight.errors import ConfigError, InvalidRequest
from safelight.models import plans, specs
from safelight.models.card import NOTHING, ModelCard, Range
from safelight.parallel.layout import Capabilities
from safelight.request import Inputs, Sampling, Task

MAX_SIDE = 4096  # 256 tokens of 16 pixels: beyond, their positions are not exact in bf16
MAX_TEXT = 512  # prompt tokens; `FluxPipeline.check_inputs` wants no more


class FluxCard(ModelCard, frozen=True, kw_only=True):
    """A model whose ranks share the prompt's tokens as well as those of the image."""

    def check(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> None:
        super().check(sampling, task, inputs)
        self._check_text(sampling.max_sequence_length)

    def _check_text(self, length: int) -> None:
        """That the transformer takes a prompt so long, and the ranks, which share its tokens as
        well as those of the image, can share it."""
        if length > MAX_TEXT:
            raise InvalidRequest(
                f"'max_sequence_length' is {length}; {self.name} takes at most {MAX_TEXT}.",
                param="max_sequence_length",
            )
        if not self._shares(length):
            how = "evenly " if self.even_shards else ""
            up = -(-length // self.shards) * self.shards
            raise InvalidRequest(
                f"'max_sequence_length' is {length}, which {self.shards} ranks (--ulysses-degree × "
                f"--ring-degree) cannot share {how}here. Nearest: "
                f"{up if up <= MAX_TEXT else up - self.shards}.",
                param="max_sequence_length",
            )


def card(directory: Path, name: str) -> FluxCard:
    """The card of the pipeline in `directory`. Raises `ConfigError` if it is another Flux."""
    transformer = specs.config(directory, "transformer")
    vae = specs.config(directory, "vae")
    _refuse_variants(transformer, vae, directory)
    # Every stage of the VAE but the last halves the sides, and tokens are 2x2 latents.
    step = 2 ** len(vae["block_out_channels"])
    sides = Range(step, MAX_SIDE // step * step, step)
    guidance_embeds = bool(transformer.get("guidance_embeds", False))
    return FluxCard(
        name=name,
        family="flux",
        path=str(directory),
        tasks=("text-to-image",),
        parameters=("max_sequence_length", *(["guidance_scale"] if guidance_embeds else [])),
        defaults={
            "width": 1024,
            "height": 1024,
            "num_frames": 1,
            "num_inference_steps": 28 if guidance_embeds else 4,
            "guidance_scale": 3.5 if guidance_embeds else 0.0,
            "max_sequence_length": MAX_TEXT,
        },
        width=sides,
        height=sides,
        num_frames=Range(1, 1),
        max_tokens=(sides.max // step) ** 2,
        patch=(1, step, step),
    )


def capabilities(directory: Path) -> Capabilities:
    """What of the pipeline in `directory` can be shared out over ranks."""
    transformer = specs.config(directory, "transformer")
    width = plans.heads(transformer) * transformer["attention_head_dim"]
    # No key of the config says how wide the inside is: diffusers' blocks have it so.
    return specs.capabilities(directory, width=width, feed_forward=4 * width, guided=False)


def _refuse_variants(transformer: dict[str, Any], vae: dict[str, Any], directory: Path) -> None:
    channels, latent = transformer["in_channels"], vae["latent_channels"]
    if channels != 4 * latent:
        raise ConfigError(
            f"The transformer in {directory} takes {channels} channels, where text-to-image has "
            f"{4 * latent}: it wants an image too (Fill, Canny, Depth). FLUX.1 dev and schnell run."
        )
