"""Z-Image's model card, read from the pipeline's JSON files. Needs no torch.

Defaults are those of `ZImagePipeline.__call__` (1024x1024, 50 steps, guidance 5); of Turbo, which
was distilled, eight steps and no guidance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safelight.errors import ConfigError
from safelight.models import specs, strength
from safelight.models.card import NOTHING, ModelCard, Range
from safelight.models.registry import read_json
from safelight.parallel.layout import Capabilities
from safelight.request import Inputs, Sampling, Task

MAX_SIDE = 4096
PADDING = 32  # the transformer pads image and text to multiples of it
TURBO_SHIFT = 3.0  # of the noise levels; the base model has 6, and nothing else tells them apart


class ZImageCard(ModelCard, frozen=True, kw_only=True):
    """A model whose forwards take pictures of different sizes."""

    max_text: int
    """Prompt tokens for which there are positions."""

    def batch_key(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> str:
        """Sizes, prompts and tasks mix: the transformer takes lists. But every row is padded to
        the longest, so only sizes of similar cost do: within a power of two of tokens, where at
        most half of a row is in vain."""
        tokens = -(-self.tokens(sampling) // PADDING) * PADDING
        return f"{self.name}/to {1 << (tokens - 1).bit_length()} tokens"

    def size_for(self, task: Task, inputs: Inputs) -> tuple[int, int] | None:
        """The input picture's, rounded down."""
        if not inputs.images:
            return None
        width, height = inputs.images[0].size
        return self._down(width, self.width), self._down(height, self.height)

    @staticmethod
    def _down(side: int, legal: Range) -> int:
        return max(side // legal.step * legal.step, legal.min)

    def check(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> None:
        super().check(sampling, task, inputs)
        strength.check(self.name, sampling, task)
        self._check_length(sampling, self.max_text)


def card(directory: Path, name: str) -> ZImageCard:
    """The card of the pipeline in `directory`. Raises `ConfigError` if it is another Z-Image."""
    transformer = specs.config(directory, "transformer")
    _refuse_variants(transformer, directory)
    # Every stage of the VAE but the last halves the sides, and tokens are 2x2 latents.
    step = 2 ** len(specs.config(directory, "vae")["block_out_channels"])
    words, rows, columns = transformer["axes_lens"]
    # A prompt's tokens have positions from 1, padded; the image comes after them.
    max_text = (words - 2) // PADDING * PADDING
    turbo = _turbo(directory)
    width, height = (Range(step, min(n * step, MAX_SIDE), step) for n in (columns, rows))
    return ZImageCard(
        name=name,
        family="z_image",
        path=str(directory),
        tasks=("text-to-image", "image-to-image"),
        parameters=(
            *("negative_prompt", "guidance_scale", "max_sequence_length", "strength"),
            *(["flow_shift"] if specs.shiftable(directory) else []),
        ),
        max_images=1,
        defaults={
            "width": min(1024, width.max),
            "height": min(1024, height.max),
            "num_frames": 1,
            "num_inference_steps": 8 if turbo else 50,
            "guidance_scale": 0.0 if turbo else 5.0,
            "max_sequence_length": min(512, max_text),
        },
        task_defaults={"image-to-image": {"strength": 0.6}},
        width=width,
        height=height,
        num_frames=Range(1, 1),
        max_tokens=(width.max // step) * (height.max // step),
        patch=(1, step, step),
        max_text=max_text,
    )


def _turbo(directory: Path) -> bool:
    """Whether it is Turbo; `safelight.json` has the last word on the defaults."""
    sampler = read_json(directory / "scheduler" / "scheduler_config.json")
    return not sampler.get("use_dynamic_shifting") and sampler.get("shift") == TURBO_SHIFT


def capabilities(directory: Path) -> Capabilities:
    """What of the pipeline in `directory` can be shared out over ranks."""
    width = specs.config(directory, "transformer")["dim"]
    return specs.capabilities(directory, width=width, feed_forward=int(width / 3 * 8))


def _refuse_variants(transformer: dict[str, Any], directory: Path) -> None:
    if 2 not in transformer["all_patch_size"] or 1 not in transformer["all_f_patch_size"]:
        raise ConfigError(
            f"The transformer in {directory} has no tokens of 2x2 latents of one frame, which the "
            "pipeline asks for; Z-Image and Z-Image Turbo run."
        )
