"""Stable Diffusion 3's model card, read from the pipeline's JSON files. Needs no torch.

Defaults are those of the `__call__` of `StableDiffusion3Pipeline` (28 steps, guidance 7) and its
siblings for input images (50 steps, strength 0.6). Nothing in a directory tells 3.5 Large Turbo
from 3.5 Large: give it `safelight.json` with 4 steps and no guidance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safelight.errors import ConfigError
from safelight.models import plans, specs, strength
from safelight.models.card import NOTHING, ModelCard, Range
from safelight.parallel.layout import Capabilities
from safelight.request import Inputs, Sampling, Task

MAX_TEXT = 512  # T5's tokens; `check_inputs` wants no more
REPAINTED = 16  # channels of latents; the inpainting pipeline knows no other number
FROM_PICTURES: dict[str, Any] = {"num_inference_steps": 50, "strength": 0.6}


class SD3Card(ModelCard, frozen=True, kw_only=True):
    """A model to whose transformer an input picture is nothing but other latents."""

    def batch_key(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> str:
        """All tasks mix."""
        size = f"{sampling.height}x{sampling.width}"
        return f"{self.name}/{size}/{sampling.max_sequence_length}"

    def check(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> None:
        super().check(sampling, task, inputs)
        strength.check(self.name, sampling, task)
        self._check_length(sampling, MAX_TEXT)


def card(directory: Path, name: str) -> SD3Card:
    """The card of the pipeline in `directory`. Raises `ConfigError` if it is another SD3."""
    transformer = specs.config(directory, "transformer")
    vae = specs.config(directory, "vae")
    _refuse_variants(transformer, vae, directory)
    # Every stage of the VAE but the last halves the sides.
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    step = scale * transformer["patch_size"]
    positions = transformer["pos_embed_max_size"]
    sides = Range(step, positions * step, step)
    side = min(transformer["sample_size"] * scale, sides.max)
    repaints: tuple[Task, ...] = ("inpainting",) if vae["latent_channels"] == REPAINTED else ()
    return SD3Card(
        name=name,
        family="sd3",
        path=str(directory),
        tasks=("text-to-image", "image-to-image", *repaints),
        parameters=(
            *("negative_prompt", "guidance_scale", "max_sequence_length", "strength"),
            *(["flow_shift"] if specs.shiftable(directory) else []),
        ),
        max_images=1,
        defaults={
            "width": side,
            "height": side,
            "num_frames": 1,
            "num_inference_steps": 28,
            "guidance_scale": 7.0,
            "max_sequence_length": 256,
        },
        task_defaults={"image-to-image": FROM_PICTURES, "inpainting": FROM_PICTURES},
        width=sides,
        height=sides,
        num_frames=Range(1, 1),
        max_tokens=positions**2,
        patch=(1, step, step),
    )


def capabilities(directory: Path) -> Capabilities:
    """What of the pipeline in `directory` can be shared out over ranks: its halves, encoders and
    VAE. Its attention has no way to work on a split sequence in diffusers."""
    transformer = specs.config(directory, "transformer")
    width = plans.heads(transformer) * transformer["attention_head_dim"]
    return specs.capabilities(directory, width=width, feed_forward=4 * width)


def _refuse_variants(transformer: dict[str, Any], vae: dict[str, Any], directory: Path) -> None:
    channels, latent = transformer["in_channels"], vae["latent_channels"]
    if channels != latent:
        raise ConfigError(
            f"The transformer in {directory} takes {channels} channels, where latents have "
            f"{latent}: it was trained for inpainting alone. Stable Diffusion 3 and 3.5 run, and "
            "inpaint too."
        )
    for encoder in ("text_encoder", "text_encoder_2"):
        if not specs.has(directory, encoder):
            raise ConfigError(
                f"{directory} has no {encoder}. Of the three only text_encoder_3, the T5, may be "
                "left out; put the CLIP back."
            )
