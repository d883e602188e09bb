"""A pipeline without a family, through every real process: progress, cancel, preemption."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.zoo_generic import tiny_lumina2
from safelight.engine import Engine, Job, build_config
from safelight.errors import JobCancelled
from safelight.wire.messages import PlanDone

TIMEOUT = 300.0
PROMPT = "a red circle moving left"
SMALL = {"width": 64, "height": 64, "max_sequence_length": 64, "seed": 5}


def submit(engine: Engine, steps: int, priority: int = 0) -> Job:
    sampling = {**SMALL, "num_inference_steps": steps}
    return engine.submit(PROMPT, sampling=sampling, priority=priority)


def wait_for_steps(job: Job, steps: int) -> None:
    for view in job.subscribe():
        if view.steps_done >= steps:
            return
    raise AssertionError("it ended before")


def test_it_is_stepped_preempted_and_cancelled(tmp_path: Path) -> None:
    plans: list[PlanDone] = []
    model = str(tiny_lumina2(tmp_path / "model"))
    config = build_config(model_path=model, device="cpu", cpu_threads=1, log_level="warning")
    with Engine(config, on_plan=plans.append) as engine:
        undisturbed = submit(engine, 30)
        seen = [view.steps_done for view in undisturbed.subscribe()]
        assert seen == sorted(seen)
        assert len(set(seen)) >= 6

        plans.clear()
        long = submit(engine, 30)
        wait_for_steps(long, 3)
        submit(engine, 2, priority=100).wait(TIMEOUT)
        assert long.progress().status == "in_progress"
        digests = [job.wait(TIMEOUT).outputs[0].sha256 for job in (undisturbed, long)]
        assert digests[0] == digests[1]
        steps = [plan.samples for plan in plans if plan.op == "step"]
        mine = [index for index, names in enumerate(steps) if f"{long.id}.0" in names]
        assert len(mine) == 30
        assert mine[-1] - mine[0] >= 30, "nothing ran in between"

        cancelled = submit(engine, 500)
        wait_for_steps(cancelled, 2)
        cancelled.cancel()
        with pytest.raises(JobCancelled):
            cancelled.wait(TIMEOUT)
        assert submit(engine, 30).wait(TIMEOUT).outputs[0].sha256 == digests[0]
