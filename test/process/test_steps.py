"""Scheduling by the step, through every real process: batching, preemption, cancellation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from safelight.errors import InvalidRequest, JobCancelled
from safelight.models.registry import load_family
from safelight.wire.messages import PlanDone

if TYPE_CHECKING:
    from safelight.engine import Job

PROMPT = "a purple circle moving down on a gray background"
TIMEOUT = 120.0


def submit(running: Any, **sampling: Any) -> Job:
    job: Job = running.engine.submit(PROMPT, sampling={"seed": 11, **sampling})
    return job


def digest(job: Job) -> str:
    """SHA-256 of the file; the encoders are deterministic, so equal frames give equal files."""
    return job.wait(TIMEOUT).outputs[0].sha256


def wait_for_steps(job: Job, steps: int) -> None:
    for view in job.subscribe():
        if view.steps_done >= steps:
            return
    raise AssertionError("it ended before")


def of(job: Job, plans: list[PlanDone]) -> list[PlanDone]:
    return [plan for plan in plans if f"{job.id}.0" in plan.samples]


def test_a_still_picture_has_the_bits_of_the_pipeline(running: Any) -> None:
    import torch

    job = submit(running, num_frames=1)
    (output,) = job.wait(TIMEOUT).outputs
    with Image.open(output.path) as picture:
        pixels = np.asarray(picture)
    torch.set_num_threads(1)
    pipeline = load_family(running.engine.config).pipeline  # type: ignore[attr-defined]
    s = job.request.sampling
    result = pipeline(
        prompt=PROMPT,
        height=s.height,
        width=s.width,
        num_frames=1,
        num_inference_steps=s.num_inference_steps,
        guidance_scale=s.guidance_scale,
        max_sequence_length=s.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(11),
        output_type="np",
    )
    assert np.array_equal(pixels, (result.frames[0, 0] * 255).round().astype(np.uint8))


def test_eight_jobs_use_less_than_45_percent_of_the_forwards(running: Any) -> None:
    steps = [4, 6, 8, 10, 12, 14, 17, 20]
    running.plans.clear()
    jobs = [submit(running, num_inference_steps=n, seed=n) for n in steps]
    for job in jobs:
        job.wait(TIMEOUT)
    forwards = running.plans_of("step")
    assert sum(len(plan.samples) for plan in forwards) == sum(steps)
    assert len(forwards) < 0.45 * sum(steps)


def test_an_image_overtakes_a_clip_and_the_clip_keeps_its_bits(running: Any) -> None:
    undisturbed = digest(submit(running, num_inference_steps=50))
    running.plans.clear()
    clip = submit(running, num_inference_steps=50)
    wait_for_steps(clip, 10)
    submitted = time.monotonic()
    image = submit(running, num_inference_steps=4, num_frames=1)
    image.wait(TIMEOUT)
    last = of(image, running.plans_of("step"))[-1].finished
    clip_digest = digest(clip)
    steps = [p for p in running.plans_of("step") if submitted < p.finished <= last]
    # Its own four, the clip's running one, and the one that was planned ahead.
    assert len(steps) <= 6
    assert len(of(clip, running.plans_of("step"))) == 50
    assert clip_digest == undisturbed


def test_a_cancelled_job_runs_at_most_one_further_step(running: Any) -> None:
    running.plans.clear()
    job = submit(running, num_inference_steps=400)
    wait_for_steps(job, 10)
    job.cancel()
    cancelled = time.monotonic()
    with pytest.raises(JobCancelled):
        job.wait(TIMEOUT)
    submit(running, num_inference_steps=1).wait(TIMEOUT)  # every earlier plan has been reported
    started_after = [p for p in of(job, running.plans) if p.started > cancelled]
    assert len(started_after) <= 1
    assert len(of(job, running.plans)) < 100


def test_n_outputs_are_samples_with_consecutive_seeds(running: Any) -> None:
    job = running.engine.submit(PROMPT, sampling={"seed": 20, "num_frames": 1}, n=3)
    outputs = job.wait(TIMEOUT).outputs
    assert [output.seed for output in outputs] == [20, 21, 22]
    assert len({output.sha256 for output in outputs}) == 3
    assert digest(submit(running, seed=21, num_frames=1)) == outputs[1].sha256


def test_progress_is_the_steps_done(running: Any) -> None:
    job = submit(running, num_inference_steps=12)
    views = list(job.subscribe())
    steps = [view.steps_done for view in views]
    assert steps == sorted(steps)
    assert len(set(steps)) >= 6
    assert any(view.eta for view in views if view.status == "in_progress")
    assert (views[-1].status, views[-1].progress) == ("completed", 100)


def test_a_wrong_request_is_refused_before_anything_runs(running: Any) -> None:
    with pytest.raises(InvalidRequest, match="Nearest: 64 or 80") as refused:
        submit(running, width=70)
    assert refused.value.param == "width"
    with pytest.raises(InvalidRequest, match="Did you mean 'num_frames'"):
        submit(running, num_frame=9)


def test_files_go_where_they_were_asked(running: Any, tmp_path: Any) -> None:
    destination = tmp_path / "deep" / "clip.mp4"
    job = running.engine.submit(PROMPT, destinations=[destination])
    (output,) = job.wait(TIMEOUT).outputs
    assert output.path == str(destination)
    assert destination.stat().st_size == output.nbytes
    assert list(destination.parent.iterdir()) == [destination]
