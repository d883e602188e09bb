"""A step cache through every real process, on two ranks that share a sequence."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from safelight.engine import Engine, Job, build_config
from safelight.wire.messages import PlanDone

TIMEOUT = 300.0
CLIP = "a red circle moving left on a white background"
PICTURE = "a blue square standing still on a black background"
THRESHOLD = 0.12


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Engine, list[PlanDone]]]:
    plans: list[PlanDone] = []
    config = build_config(
        device="cpu",
        ulysses_degree=2,
        cpu_threads=1,
        log_level="warning",
        step_cache="first-block",
        step_cache_threshold=THRESHOLD,
    )
    with Engine(config, on_plan=plans.append) as engine:
        yield engine, plans


def submit(engine: Engine, prompt: str, **sampling: int) -> Job:
    return engine.submit(prompt, sampling={"seed": 5, **sampling})


def digest(job: Job) -> str:
    return job.wait(TIMEOUT).outputs[0].sha256


def begun(job: Job) -> Job:
    """When it has taken steps that it can remember."""
    assert any(view.steps_done >= 10 for view in job.subscribe())
    return job


def test_a_clip_and_a_picture_that_overtakes_it_are_what_each_is_alone(
    running: tuple[Engine, list[PlanDone]],
) -> None:
    engine, plans = running
    clip = {"num_inference_steps": 150}
    picture = {"num_inference_steps": 20, "num_frames": 1}
    alone = [digest(submit(engine, CLIP, **clip)), digest(submit(engine, PICTURE, **picture))]
    plans.clear()
    jobs = [begun(submit(engine, CLIP, **clip)), submit(engine, PICTURE, **picture)]
    assert [digest(job) for job in jobs] == alone
    steps = [plan.samples for plan in plans if plan.op == "step"]
    assert len(steps) == 170
    assert {len(samples) for samples in steps} == {1}
    assert steps[-1] == (f"{jobs[0].id}.0",), "the picture was to come between"
