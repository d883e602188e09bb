"""A sampler of its own for every sample: one that is shared would mix them up."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from safelight.models.specs import SHIFTS
from safelight.models.strength import first_step
from safelight.request import Sampling


def own(scheduler: Any, flow_shift: float | None = None) -> Any:
    """A copy of a pipeline's scheduler, with another shift of the noise levels if one is given.

    The copy of a pristine scheduler has its bits, and costs a tenth of `from_config`.
    """
    if flow_shift is None:
        return copy.deepcopy(scheduler)
    name = next(name for name in SHIFTS if name in scheduler.config)
    return type(scheduler).from_config(scheduler.config, **{name: flow_shift})


def mu(config: Mapping[str, Any], tokens: int, most: float = 1.15) -> float:
    """The shift of the noise levels of an image of so many tokens: the larger, the more.

    On the line through two sizes that the sampler's `config` may name; `most` is what the pipeline
    has for the larger. `flux`, `qwen_image`, `sd3` and `z_image` have it so.
    """
    small, large = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", most)
    slope = (high - low) / (large - small)
    shift: float = tokens * slope + (low - slope * small)
    return shift


def clean(
    scheduler: Any, prediction: torch.Tensor, latents: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """Latents without noise, as the sampler estimates them from the step that it has just taken:
    from `latents` with `prediction`, at `timestep`. Shaped as they, float32.

    A flow is a straight line (Liu et al., 2022); other predictions are of the noise or of the
    velocity (Salimans & Ho, 2022) of latents whose signal and noise are `signal` and `noise`.
    """
    prediction, latents = prediction.float(), latents.float()
    # Those of flows that have no other kind do not say which they are.
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    if kind == "sample":
        return prediction
    if kind == "flow_prediction":
        sigma: torch.Tensor = scheduler.sigmas[scheduler.step_index - 1].to(latents)
        return latents - sigma * prediction
    signal, noise, latents = _levels(scheduler, latents, timestep)
    if kind == "v_prediction":
        return signal * latents - noise * prediction
    return (latents - noise * prediction) / signal


def _levels(
    scheduler: Any, latents: torch.Tensor, timestep: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How much signal and noise there is in latents of variance one, and the latents so scaled."""
    if "sigmas" not in vars(scheduler):
        level = scheduler.alphas_cumprod[int(timestep)].to(latents)
        return level**0.5, (1 - level) ** 0.5, latents
    sigma = scheduler.sigmas[scheduler.step_index - 1].to(latents)
    signal = (1 + sigma**2) ** -0.5
    if float(scheduler.init_noise_sigma) != 1:  # its latents grow with the noise
        latents = latents * signal
    return signal, sigma * signal, latents


def left(scheduler: Any, sampling: Sampling) -> torch.Tensor:
    """The timesteps that `strength` leaves of the schedule, without it all; the sampler begins
    there."""
    first = first_step(sampling.num_inference_steps, sampling.strength or 1.0) * scheduler.order
    scheduler.set_begin_index(first)
    timesteps: torch.Tensor = scheduler.timesteps[first:]
    return timesteps
