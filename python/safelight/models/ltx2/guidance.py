"""LTX-2's guidance: one prediction from four, for the video and for the sound alike.

The pipeline moves away from what the model predicts without the prompt, with some attention left
out (spatio-temporal guidance) and with video and sound apart. Only the first has a scale of the
request, for the video; the others are the defaults of `LTX2Pipeline.__call__`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import LTX2Pipeline
from diffusers.pipelines.ltx2.pipeline_ltx2 import rescale_noise_cfg

SOUND_SCALE = 7.0
PERTURBED_SCALE = 1.0
PERTURBED_BLOCKS = [28]
"""Blocks of the transformer whose self-attention is left out."""
ISOLATED_SCALE = 3.0
RESCALE = 0.7


@dataclass(frozen=True)
class Predictions:
    """Velocities of one sample, all [1, tokens, channels], of its video or of its sound."""

    prompted: torch.Tensor
    unprompted: torch.Tensor
    perturbed: torch.Tensor
    isolated: torch.Tensor


def guided(
    pipeline: LTX2Pipeline,
    predictions: Predictions,
    latents: torch.Tensor,
    scheduler: Any,
    step: int,
    scale: float,
) -> torch.Tensor:
    """The velocity to follow from `latents`, all float32; guidance is of the clean estimates."""
    prompted, unprompted, perturbed, isolated = (
        pipeline.convert_velocity_to_x0(latents, velocity, step, scheduler)
        for velocity in (
            predictions.prompted,
            predictions.unprompted,
            predictions.perturbed,
            predictions.isolated,
        )
    )
    clean = (
        prompted
        + (scale - 1) * (prompted - unprompted)
        + PERTURBED_SCALE * (prompted - perturbed)
        + (ISOLATED_SCALE - 1) * (prompted - isolated)
    )
    clean = rescale_noise_cfg(clean, prompted, guidance_rescale=RESCALE)
    velocity: torch.Tensor = pipeline.convert_x0_to_velocity(latents, clean, step, scheduler)
    return velocity
