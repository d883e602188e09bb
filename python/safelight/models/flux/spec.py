"""Flux's model card, read from the pipeline's JSON files. Needs no torch.

Defaults are those of `FluxPipeline.__call__` (1024x1024, 28 steps, guidance 3.5); of a transformer
without embedded guidance (schnell) four steps, for which it was distilled, and no guidance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safelight.errors import ConfigError, InvalidRequest
from safelight.models import plans
from safelight.models.card import ModelCard, Range
from safelight.models.registry import read_json
from safelight.parallel import encoders
from safelight.parallel.layout import Capabilities
from safelight.request import Sampling

MAX_SIDE = 4096  # 256 tokens of 16 pixels: beyond, their positions are not exact in bf16
MAX_TEXT = 512  # prompt tokens; `FluxPipeline.check_inputs` wants no more


class FluxCard(ModelCard, frozen=True, kw_only=True):
    """A model that runs one forward a step, whose guidance, if any, is an input of that."""

    guidance_embeds: bool
    """Whether it has that input."""

    def check(self, sampling: Sampling) -> None:
        super().check(sampling)
        self._check_text(sampling.max_sequence_length)
        if sampling.negative_prompt:
            raise InvalidRequest(
                f"'negative_prompt' is of no use: {self.name} runs no unconditional forward. "
                "Leave it out, and say in the prompt what to show.",
                param="negative_prompt",
            )
        if sampling.guidance_scale > 1 and not self.guidance_embeds:
            raise InvalidRequest(
                f"'guidance_scale' is {sampling.guidance_scale:g}; {self.name} is distilled to do "
                "without guidance. Leave it out, or give 0.",
                param="guidance_scale",
            )

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
    transformer = read_json(directory / "transformer" / "config.json")
    vae = read_json(directory / "vae" / "config.json")
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
        defaults={
            "width": 1024,
            "height": 1024,
            "num_frames": 1,
            "fps": 1,
            "num_inference_steps": 28 if guidance_embeds else 4,
            "guidance_scale": 3.5 if guidance_embeds else 0.0,
            "max_sequence_length": MAX_TEXT,
        },
        width=sides,
        height=sides,
        num_frames=Range(1, 1),
        max_tokens=(sides.max // step) ** 2,
        patch=(1, step, step),
        guidance_embeds=guidance_embeds,
    )


def capabilities(directory: Path) -> Capabilities:
    """What of the pipeline in `directory` can be shared out over ranks."""
    transformer = read_json(directory / "transformer" / "config.json")
    encoder_heads, encoders_whole = encoders.survey(directory)
    heads = plans.heads(transformer)
    width = heads * transformer["attention_head_dim"]
    return Capabilities(
        transformer=transformer["_class_name"],
        sequence=plans.sequence(transformer["_class_name"]),
        masked=plans.masked(transformer["_class_name"]),
        guided=False,
        heads=heads,
        width=width,
        feed_forward=4 * width,  # no key of the config: diffusers' blocks have it so
        encoder_heads=encoder_heads,
        encoders_whole=encoders_whole,
    )


def _refuse_variants(transformer: dict[str, Any], vae: dict[str, Any], directory: Path) -> None:
    channels, latent = transformer["in_channels"], vae["latent_channels"]
    if channels != 4 * latent:
        raise ConfigError(
            f"The transformer in {directory} takes {channels} channels, where text-to-image has "
            f"{4 * latent}: it wants an image too (Fill, Canny, Depth). FLUX.1 dev and schnell run."
        )
