"""The arithmetic and the job lists of the benchmarks. What they measure has no right value."""

from __future__ import annotations

import asyncio
import io
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmark"
sys.path.append(str(BENCHMARK))  # they are scripts, and import each other by name

import typer  # noqa: E402

import common  # noqa: E402
import compare  # noqa: E402
import scheduler_tick  # noqa: E402
import serving  # noqa: E402
import workload  # noqa: E402
from common import Spread  # noqa: E402
from workload import Job, Outcome, Report  # noqa: E402


def job(index: int, steps: int = 4) -> Job:
    return Job(index=index, prompt="a red circle", steps=steps, seed=index)


def outcome(index: int, started: float, finished: float, **values: object) -> Outcome:
    return Outcome(job(index, steps=10), started, finished, **values)  # type: ignore[arg-type]


def test_a_spread_interpolates_percentiles() -> None:
    spread = Spread.of([float(value) for value in range(100, -1, -1)])
    assert (spread.count, spread.mean, spread.least, spread.most) == (101, 50, 0, 100)
    assert (spread.p50, spread.p95, spread.p99) == pytest.approx((50, 95, 99))
    assert Spread.of([1.0, 2.0]).p50 == 1.5
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_a_report_counts_completed_jobs_only() -> None:
    outcomes = [
        outcome(0, 10.0, 11.0),
        outcome(1, 10.5, 12.5),
        outcome(2, 11.0, 15.0, error="status 429"),
        outcome(3, 11.0, 12.0, error="status 429"),
    ]
    report = Report.of(outcomes)
    assert (report.jobs, report.failures, report.errors) == (4, 2, ["status 429"])
    assert report.seconds == 5
    assert report.jobs_per_second == pytest.approx(2 / 5)
    assert report.steps_per_second == pytest.approx(20 / 5)
    assert report.latency is not None
    assert (report.latency.p50, report.latency.most) == (1.5, 2)
    assert ("error", "status 429") in report.rows()


def test_a_report_of_failures_alone_has_no_latency() -> None:
    report = Report.of([outcome(0, 0.0, 1.0, error="x")])
    assert (report.latency, report.jobs_per_second) == (None, 0)


def test_the_same_arguments_give_the_same_jobs() -> None:
    jobs = workload.make_jobs(60, [4, 8, 12], images=0.25, seed=3)
    assert jobs == workload.make_jobs(60, [4, 8, 12], images=0.25, seed=3)
    assert jobs != workload.make_jobs(60, [4, 8, 12], images=0.25, seed=4)
    assert [job.index for job in jobs] == list(range(60))


def test_jobs_mix_steps_evenly_and_do_not_repeat_prompts() -> None:
    jobs = workload.make_jobs(60, [4, 8, 12], images=0.25)
    assert Counter(job.steps for job in jobs) == {4: 20, 8: 20, 12: 20}
    assert Counter(job.kind for job in jobs) == {"image": 15, "clip": 45}
    assert len({job.prompt for job in jobs}) == 60
    assert len({job.seed for job in jobs}) == 60


def test_arrivals_are_reproducible_and_have_the_rate() -> None:
    arrivals = workload.poisson_arrivals(4000, 5.0, seed=1)
    assert arrivals == workload.poisson_arrivals(4000, 5.0, seed=1)
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] == pytest.approx(4000 / 5, rel=0.1)


def test_latencies_in_line_are_those_of_a_closed_loop() -> None:
    # Two clients: the third job is asked for when the first is done (at 1), and ends at 6.
    assert workload.latencies_in_line([1.0, 2.0, 3.0, 4.0], 2) == [1, 3, 5, 7]
    assert workload.latencies_in_line([1.0, 2.0], 1) == [1, 2]
    assert workload.latencies_in_line([1.0], 8) == [1]


def test_step_counts_are_checked() -> None:
    assert workload.parse_steps("4,6, 8") == [4, 6, 8]
    for wrong in ("", "4,x", "0"):
        with pytest.raises(typer.BadParameter):
            workload.parse_steps(wrong)


def test_a_fingerprint_of_a_png_is_that_of_its_pixels() -> None:
    def png(color: str, text: str) -> bytes:
        chunks, file = PngInfo(), io.BytesIO()
        chunks.add_text("prompt", text)
        Image.new("RGB", (4, 4), color).save(file, format="PNG", pnginfo=chunks)
        return file.getvalue()

    assert workload.fingerprint(png("red", "a")) == workload.fingerprint(png("red", "b"))
    assert workload.fingerprint(png("red", "a")) != workload.fingerprint(png("blue", "a"))
    assert workload.fingerprint(b"mp4") != workload.fingerprint(b"mp5")


def test_a_closed_loop_keeps_as_many_jobs_as_there_are_clients() -> None:
    running: set[int] = set()
    seen: list[int] = []

    async def work(one: Job) -> Outcome:
        running.add(one.index)
        seen.append(len(running))
        for _ in range(one.steps):
            await asyncio.sleep(0)
        running.remove(one.index)
        return Outcome(one, 0.0, 1.0)

    jobs = [job(index, steps=1 + index % 3) for index in range(12)]
    outcomes = asyncio.run(serving.closed_loop(work, jobs, 3))
    assert [outcome.job for outcome in outcomes] == jobs
    assert max(seen) == 3


def test_an_open_loop_does_not_wait_for_earlier_jobs() -> None:
    started: list[int] = []
    everybody = asyncio.Event()

    async def work(one: Job) -> Outcome:
        started.append(one.index)
        if len(started) == 3:
            everybody.set()
        await everybody.wait()
        return Outcome(one, 0.0, 1.0)

    jobs = [job(index) for index in range(3)]
    outcomes = asyncio.run(serving.open_loop(work, jobs, [0.0, 0.001, 0.002]))
    assert [outcome.job for outcome in outcomes] == jobs
    assert started == [0, 1, 2]


def test_a_comparison_pairs_repeats_and_files() -> None:
    looped = [[outcome(0, 0.0, 1.0, sha256="a"), outcome(1, 1.0, 2.0, sha256="b")]] * 2
    served = [
        [outcome(0, 0.0, 0.5, sha256="a"), outcome(1, 0.0, 1.0, sha256="c")],
        [outcome(0, 0.0, 0.4, sha256="a"), outcome(1, 0.0, 0.5, sha256="b")],
    ]
    found = compare.compare(looped, served, {"worker": 2.0}, clients=2)
    assert found.ratios == pytest.approx([2, 4])
    assert found.ratio == pytest.approx(3)
    assert found.loop.jobs_per_second == pytest.approx(1)
    assert found.latency_in_line.most == 2
    assert found.identical_files == 0.75
    assert found.cpu_seconds_per_job == {"worker": 0.5}


def test_the_timed_world_keeps_its_queue_and_counts_every_report() -> None:
    spread = scheduler_tick.measure(batch=4, queued=20, ticks=50, steps=[2, 3])
    assert spread.count >= 50


def test_a_verdict_names_the_target() -> None:
    assert common.verdict(31.0, 30.0, "ms") == "31 ms (target: at most 30 ms, MISSED)"
    assert common.verdict(29.0, 30.0, "ms").endswith("met)")
