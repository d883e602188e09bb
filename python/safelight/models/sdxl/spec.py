"""Stable Diffusion XL's model card, read from the pipeline's JSON files. Needs no torch.

Defaults are those of the `__call__` of `StableDiffusionXLPipeline` (50 steps, guidance 5) and its
siblings for image-to-image (strength 0.3) and inpainting (strength 0.9999, guidance 7.5); of SDXL
Turbo and of UNets distilled to have guidance embedded (LCM) the few steps that their authors name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safelight.errors import ConfigError, InvalidRequest
from safelight.models import specs, strength
from safelight.models.card import NOTHING, ModelCard, Range
from safelight.models.registry import read_json
from safelight.parallel import encoders
from safelight.parallel.layout import Capabilities
from safelight.request import Inputs, Sampling, Task

MAX_SIDE = 4096  # sixteen times the pixels it was trained on; attention grows with their square
GRID = 8  # `check_inputs` wants multiples of 8 whatever the VAE is
LATENT = 4  # channels of latents; the inpainting pipeline knows no other number
REPAINTING = 9  # channels of a UNet that sees mask and masked picture beside the latents


class SDXLCard(ModelCard, frozen=True, kw_only=True):
    """A model to whose UNet an input picture is nothing but other latents."""

    def tokens(self, sampling: Sampling, inputs: Inputs = NOTHING) -> int:
        """Where attention is widest; sides that are no multiple of a token are padded."""
        _, rows, columns = self.patch
        return math.ceil(sampling.height / rows) * math.ceil(sampling.width / columns)

    def batch_key(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> str:
        """All tasks mix."""
        return f"{self.name}/{sampling.height}x{sampling.width}"

    def size_for(self, task: Task, inputs: Inputs) -> tuple[int, int] | None:
        """Image-to-image keeps the picture's size, cut to the grid; inpainting makes the default
        size of every picture, as its pipeline does."""
        if task != "image-to-image" or not inputs.images:
            return None
        width, height = inputs.images[0].size
        return width - width % self.width.step, height - height % self.height.step

    def check(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> None:
        super().check(sampling, task, inputs)
        strength.check(self.name, sampling, task)
        steps, given = sampling.num_inference_steps, sampling.strength
        if given is not None and int(steps * given) < 1:
            raise InvalidRequest(
                f"'strength' {given} leaves none of the {steps} steps. Give at least "
                f"{math.ceil(1000 / steps) / 1000}, or {math.ceil(1 / given)} steps.",
                param="strength",
            )


def card(directory: Path, name: str) -> SDXLCard:
    """The card of the pipeline in `directory`. Raises `ConfigError` if it is another SDXL."""
    unet, vae = specs.config(directory, "unet"), specs.config(directory, "vae")
    sampler = read_json(directory / "scheduler" / "scheduler_config.json")
    _refuse_variants(unet, vae, sampler, directory)
    # Every stage of the VAE but the last halves the sides.
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    step = math.lcm(GRID, scale)
    sides = Range(step, MAX_SIDE // step * step, step)
    side = min(unet["sample_size"] * scale, sides.max)
    patch = scale * 2 ** _first_attention(unet)
    defaults, task_defaults = _defaults(unet, sampler)
    return SDXLCard(
        name=name,
        family="sdxl",
        path=str(directory),
        tasks=_tasks(directory, unet),
        parameters=(
            *("guidance_scale", "strength"),
            *(["negative_prompt"] if _guided(unet) else []),
            *(["flow_shift"] if _shiftable(directory, sampler) else []),
        ),
        max_images=1,
        defaults={"width": side, "height": side, "num_frames": 1, **defaults},
        task_defaults=task_defaults,
        width=sides,
        height=sides,
        num_frames=Range(1, 1),
        max_tokens=math.ceil(sides.max / patch) ** 2,
        patch=(1, patch, patch),
    )


def capabilities(directory: Path) -> Capabilities:
    """What of the pipeline in `directory` can be shared out over ranks: its halves, encoders and
    VAE. A UNet convolves between its attention layers, so its sequence is not split."""
    unet = specs.config(directory, "unet")
    encoder_heads, encoders_whole = encoders.survey(directory)
    channels, first = unet["block_out_channels"], _first_attention(unet)
    return Capabilities(
        transformer=unet["_class_name"],
        sequence=False,
        guided=_guided(unet),
        heads=math.gcd(*_heads(unet)),
        # Above the first attention a token is several latents, each with channels of its own.
        width=max(channels[level] * 4 ** (first - level) for level in range(first + 1)),
        feed_forward=4 * channels[first],
        encoder_heads=encoder_heads,
        encoders_whole=encoders_whole,
    )


def _attends(unet: dict[str, Any]) -> list[bool]:
    """Whether there is attention, level by level."""
    return ["CrossAttn" in kind for kind in unet["down_block_types"]]


def _first_attention(unet: dict[str, Any]) -> int:
    """The level where it is widest. Every level halves the sides of the one before."""
    levels = _attends(unet)
    return levels.index(True) if any(levels) else len(levels) - 1


def _heads(unet: dict[str, Any]) -> list[int]:
    """Of the levels with attention; diffusers' UNets call them `attention_head_dim`."""
    heads = unet.get("num_attention_heads") or unet["attention_head_dim"]
    levels = _attends(unet)
    each = heads if isinstance(heads, list) else [heads] * len(levels)
    return [count for count, attends in zip(each, levels, strict=True) if attends] or each


def _guided(unet: dict[str, Any]) -> bool:
    """Whether guidance takes an unconditional forward; else its scale is an input of the UNet."""
    return unet.get("time_cond_proj_dim") is None


def _shiftable(directory: Path, sampler: dict[str, Any]) -> bool:
    """Samplers have a shift in their configuration that only flow models use."""
    return bool(sampler.get("use_flow_sigmas")) and specs.shiftable(directory)


def _tasks(directory: Path, unet: dict[str, Any]) -> tuple[Task, ...]:
    if unet["in_channels"] == REPAINTING:
        return ("inpainting",)
    from_pictures: tuple[Task, ...] = ("image-to-image", "inpainting")
    if _refines(directory):
        # Its UNet wants an aesthetic score, which the text-to-image pipeline does not know.
        return from_pictures
    return ("text-to-image", *from_pictures)


def _refines(directory: Path) -> bool:
    index = read_json(directory / "model_index.json")
    return bool(index.get("requires_aesthetics_score", False))


Defaults = dict[str, Any]


def _defaults(
    unet: dict[str, Any], sampler: dict[str, Any]
) -> tuple[Defaults, dict[Task, Defaults]]:
    """(of all tasks, where those of a task are others)"""
    if _turbo(unet, sampler):
        # At least one step must be left: two steps at half the strength.
        one: Defaults = {"num_inference_steps": 2, "strength": 0.5}
        tasks: dict[Task, Defaults] = {"image-to-image": one, "inpainting": one}
        return {"num_inference_steps": 1, "guidance_scale": 0.0}, tasks
    repaint: Defaults = {"strength": 0.9999}
    if not _guided(unet):
        base: Defaults = {"num_inference_steps": 4, "guidance_scale": 8.0}
        return base, {"image-to-image": {"strength": 0.3}, "inpainting": repaint}
    return (
        {"num_inference_steps": 50, "guidance_scale": 5.0},
        {"image-to-image": {"strength": 0.3}, "inpainting": {**repaint, "guidance_scale": 7.5}},
    )


def _turbo(unet: dict[str, Any], sampler: dict[str, Any]) -> bool:
    """SDXL Turbo has no name for itself: it was distilled at half the size, for this sampler."""
    return (
        sampler.get("_class_name") == "EulerAncestralDiscreteScheduler"
        and sampler.get("timestep_spacing") == "trailing"
        and bool(unet["sample_size"] == 64)
    )


def _refuse_variants(
    unet: dict[str, Any], vae: dict[str, Any], sampler: dict[str, Any], directory: Path
) -> None:
    if unet["in_channels"] not in (LATENT, REPAINTING) or vae["latent_channels"] != LATENT:
        raise ConfigError(
            f"The UNet in {directory} takes {unet['in_channels']} channels and its latents have "
            f"{vae['latent_channels']}. UNets of {LATENT}, and of {REPAINTING} for inpainting, "
            f"run, on latents of {LATENT}."
        )
    if unet.get("addition_embed_type") != "text_time":
        raise ConfigError(
            f"The UNet in {directory} has addition_embed_type {unet.get('addition_embed_type')}, "
            "which no SDXL has (text_time). Check that its configuration is the model's own."
        )
    if str(sampler.get("_class_name")).startswith("FlowMatch"):
        raise ConfigError(
            f"{directory} has a {sampler['_class_name']}, which does not scale what the UNet sees "
            "(scale_model_input); diffusers' SDXL pipelines need one of the Karras schedulers."
        )
