"""Pictures of the running estimate: of every family, when they are due, and at no cost in bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffusers
import msgspec
import numpy as np
import pytest
import torch

from fakes import pipelines
from fakes.cases import Case, Checkpoints, Stepper, loaded, sample
from fakes.parity import one_thread
from safelight.models import samplers
from safelight.models.session import preview_steps
from safelight.parallel.mesh import Mesh

STEPPED = [case for case in pipelines.CASES if not case.solo]
CASES = [one for index, one in enumerate(STEPPED) if index % 3 == 0 or one.mask]
"""Of every family several, and all that have a mask."""
UNCLIPPED = {"clip_sample": False}  # latents are not pixels
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"  # diffusers' own
)

# ------------------------------------------------------------------------------------- samplers


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("EulerDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {"prediction_type": "v_prediction"}),
        ("HeunDiscreteScheduler", {}),
        ("DDIMScheduler", UNCLIPPED),
        ("DDIMScheduler", {**UNCLIPPED, "prediction_type": "v_prediction"}),
        ("DDIMScheduler", {**UNCLIPPED, "prediction_type": "sample"}),
        ("DDPMScheduler", UNCLIPPED),
        ("UniPCMultistepScheduler", FLOW),
        ("UniPCMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {"prediction_type": "v_prediction"}),
        ("DPMSolverMultistepScheduler", FLOW),
        ("DPMSolverMultistepScheduler", {}),
    ],
    ids=str,
)
def test_the_estimate_is_the_samplers_own(kind: str, settings: dict[str, Any]) -> None:
    """What diffusers says of its own accord: in the step's output, or where it converts what the
    model predicts."""
    scheduler = getattr(diffusers, kind)(**settings)
    for latents, prediction, timestep, _, said in _course(scheduler, 6):
        estimate = samplers.clean(scheduler, prediction, latents, timestep)
        scale = said.abs().max()
        torch.testing.assert_close(estimate / scale, said / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}), ("LCMScheduler", {})],
)
def test_the_last_estimate_is_the_result(kind: str, settings: dict[str, Any]) -> None:
    """Of samplers that do not say it, or with a model's own correction."""
    scheduler = getattr(diffusers, kind)(**settings)
    *_, (latents, prediction, timestep, result, said) = _course(scheduler, 4)
    assert said is result
    if kind == "LCMScheduler":  # its consistency function mixes in a little of the latents
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(timestep)
        result = (result - skip * latents) / out
    estimate = samplers.clean(scheduler, prediction, latents, timestep)
    torch.testing.assert_close(estimate, result, rtol=0, atol=1e-5)


def _course(scheduler: Any, steps: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Latents, prediction, timestep, new latents and, if the sampler says it, their estimate (else
    the new latents), step by step; nothing is taken back before the next."""
    generator = torch.Generator().manual_seed(1)
    scheduler.set_timesteps(steps)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    if "init_noise_sigma" in vars(scheduler):
        latents = latents * float(scheduler.init_noise_sigma)
    for timestep in scheduler.timesteps:
        if "init_noise_sigma" in vars(scheduler):
            scheduler.scale_model_input(latents, timestep)
        prediction = torch.randn(latents.shape, generator=generator)
        output = scheduler.step(prediction, timestep, latents)
        said = output.prev_sample
        if "model_outputs" in vars(scheduler):
            said = scheduler.model_outputs[-1]
        elif "pred_original_sample" in output and "LCM" not in type(scheduler).__name__:
            said = output.pred_original_sample
        yield latents, prediction, timestep, output.prev_sample, said
        latents = output.prev_sample


# ------------------------------------------------------------------------------------- families


@pytest.mark.parametrize(
    ("steps", "count", "due"),
    [(50, 3, {12, 25, 38}), (4, 3, {1, 2, 3}), (4, 16, {1, 2, 3}), (2, 1, {1}), (1, 3, set())],
)
def test_previews_are_spread_over_the_steps(steps: int, count: int, due: set[int]) -> None:
    assert preview_steps(steps, count) == due


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@one_thread()
def test_a_family_shows_what_it_makes(
    case: Case, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.environment(monkeypatch)
    path = checkpoints.of(case)
    family = loaded(path)
    spec = sample(case, path)
    plain, shown = (Stepper(family, Mesh.single(torch.device("cpu"))) for _ in range(2))
    plain.begin(spec)
    expected = plain.finish(spec.id)
    shown.begin(msgspec.structs.replace(spec, previews=2))
    steps = shown.left(spec.id)
    shown.step(spec.id, count=steps)
    session = shown.executor._sessions[spec.id]
    assert np.array_equal(shown.finish(spec.id), expected), "a preview changed the result"
    assert set(shown.previews) == preview_steps(steps, 2) != set()
    _, height, width, _ = expected.shape
    assert {frame.shape for frame in shown.previews.values()} == {(1, height, width, 3)}
    session.estimate = session.latents
    if len(expected) == 1 and spec.inputs.mask is None:
        with torch.inference_mode():
            assert np.array_equal(family.preview(session), expected)
