"""One request on an idle server: what does the server add to the bare pipeline's time?

    python benchmark/single.py --rounds 15

The same job runs on both sides, in turns; each side is idle while the other works. The server's
time is what a client sees: over HTTP, from the request to the file in its hands. The bare time is
the pipeline's, with writing the same file. Three kinds of job: a clip (create, poll, content), one
frame by the same calls, and a still image in one blocking request.

A second part takes the server's time apart, through the `Engine`, which reports every plan.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import msgspec
import typer

import common
import workload
from common import Spread, median
from diffusers_loop import LoopProcess
from safelight.config import EngineConfig
from safelight.engine import Engine
from safelight.wire.messages import PlanDone
from server import Server
from serving import Client
from workload import Job, Kind, Outcome

TARGET = 30.0  # ms over the bare pipeline
KINDS: tuple[tuple[Kind, str], ...] = (
    ("clip", "clip (video API)"),
    ("frame", "one frame (video API)"),
    ("image", "still image (blocking)"),
)
_WARM_UP = 2  # rounds that do not count

Rounds = Annotated[int, typer.Option(min=1, help="Jobs of every kind that count.")]
Run = Callable[[Job], Outcome]


class Figures(msgspec.Struct):
    """One kind of job; milliseconds."""

    bare: Spread
    server: Spread
    overhead: float
    """Difference of the medians."""
    overhead_paired: Spread
    """Of the differences, round by round."""
    bare_writing: float
    """Median part of the bare time that was the file."""
    identical: bool
    """Whether all files were the same on both sides (PNG: the pixels)."""


def measure(bare: Run, server: Run, kind: Kind, steps: int, rounds: int) -> Figures:
    """Both sides in turns; who goes first alternates."""
    pairs = []
    for job in _jobs(kind, steps, rounds + _WARM_UP):
        if job.index % 2:
            theirs, ours = bare(job), server(job)
        else:
            ours, theirs = server(job), bare(job)
        if ours.error is not None:
            raise RuntimeError(f"the server failed: {ours.error}")
        pairs.append((theirs, ours))
    del pairs[:_WARM_UP]
    ms = [(1000 * theirs.latency, 1000 * ours.latency) for theirs, ours in pairs]
    alone, served = Spread.of([a for a, _ in ms]), Spread.of([b for _, b in ms])
    return Figures(
        bare=alone,
        server=served,
        overhead=served.p50 - alone.p50,
        overhead_paired=Spread.of([b - a for a, b in ms]),
        bare_writing=median([1000 * bare.writing for bare, _ in pairs]),
        identical=all(a.sha256 == b.sha256 for a, b in pairs),
    )


def _jobs(kind: Kind, steps: int, count: int) -> Iterator[Job]:
    """Every kind has prompts of its own, so that none finds its text encoded."""
    seed = [name for name, _ in KINDS].index(kind)
    for job in workload.make_jobs(count, [steps], seed=seed):
        yield msgspec.structs.replace(job, kind=kind, prompt=f"{job.prompt}, {kind}")


# ------------------------------------------------------------------------------------- breakdown


class Parts(msgspec.Struct):
    """Where a clip's time goes; medians, milliseconds."""

    accept: float
    """`submit` returns: the job is on disk."""
    dispatch: float
    """From there (or before it) to the first plan's start; negative if it started before."""
    encode: float
    step: float
    """All denoising steps."""
    gaps: float
    """Between the plans: the rank waits."""
    decode: float
    file: float
    """From the end of the decode: MP4, to disk, recorded, the waiter told."""
    total: float


def take_apart(config: EngineConfig, steps: int, rounds: int) -> Parts:
    """Clips through the `Engine`, one at a time."""
    plans: list[PlanDone] = []
    found = []
    with Engine(config, on_plan=plans.append) as engine:
        for job in _jobs("clip", steps, rounds + _WARM_UP):
            plans.clear()
            asked = time.monotonic()
            sampling = {"num_inference_steps": steps, "seed": job.seed}
            submitted = engine.submit(job.prompt, sampling=sampling)
            accepted = time.monotonic()
            submitted.wait(600)
            found.append(_parts(plans, asked, accepted, time.monotonic()))
    columns = zip(*found[_WARM_UP:], strict=True)
    return Parts(*(1000 * median(column) for column in columns))


def _parts(plans: list[PlanDone], asked: float, accepted: float, ended: float) -> list[float]:
    """Seconds, in the order of `Parts`."""
    mine = [plan for plan in plans if plan.samples]
    spent = dict.fromkeys(("encode", "step", "decode"), 0.0)
    for plan in mine:
        spent[plan.op] += plan.finished - plan.started
    gaps = sum(after.started - plan.finished for plan, after in itertools.pairwise(mine))
    return [
        accepted - asked,
        mine[0].started - accepted,
        spent["encode"],
        spent["step"],
        gaps,
        spent["decode"],
        ended - mine[-1].finished,
        ended - asked,
    ]


# ---------------------------------------------------------------------------------- command line


def show(found: dict[Kind, Figures], parts: Parts | None, steps: int) -> None:
    rows = []
    for kind, label in KINDS:
        figures = found[kind]
        spread = figures.overhead_paired
        rows.append(
            (
                label,
                f"{figures.bare.p50:.1f}",
                f"{figures.server.p50:.1f}",
                f"{figures.overhead:+.1f}",
                f"{spread.p50:+.1f} ({spread.least:+.1f} to {spread.most:+.1f})",
                "yes" if figures.identical else "NO",
            )
        )
    columns = ("job", "bare", "server", "overhead", "by round (least to most)", "same file")
    common.table(f"one request, {steps} steps, median ms", columns, rows)
    for kind, label in KINDS:
        common.console.print(f"{label}: {common.verdict(found[kind].overhead, TARGET, 'ms')}")
    if parts is not None:
        values = msgspec.structs.asdict(parts)
        common.table(
            "a clip inside the engine, median ms (no HTTP)",
            ("part", "ms"),
            [(name, f"{value:.1f}") for name, value in values.items()],
        )
        clip = found["clip"]
        common.console.print(
            f"bare: {clip.bare.p50 - clip.bare_writing:.1f} ms pipeline, "
            f"{clip.bare_writing:.1f} ms file"
        )


def main(
    rounds: Rounds = 15,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of every job.")] = 10,
    poll_ms: Annotated[int, typer.Option("--poll-ms", min=0, help="0: `Prefer: wait`.")] = 0,
    breakdown: Annotated[bool, typer.Option(help="Also take the server's time apart.")] = True,
    model_path: common.ModelPath = "builtin:shapes",
    device: common.Device = "auto",
    cpu_threads: common.Threads = 0,
    server_cpu_threads: common.ServerThreads = None,
    name: common.Name = "single",
) -> None:
    """The latency a server adds to one request."""
    config = common.engine_config(model_path, device, cpu_threads)
    threads = cpu_threads if server_cpu_threads is None else server_cpu_threads
    serving_config = common.engine_config(model_path, device, threads)
    with LoopProcess(config) as loop, Server(serving_config) as server, asyncio.Runner() as runner:
        client = Client(server.base_url, poll_ms=poll_ms)
        try:
            found = {
                kind: measure(
                    lambda job: loop.run([job])[0],
                    lambda job: runner.run(client.run(job)),
                    kind,
                    steps,
                    rounds,
                )
                for kind, _ in KINDS
            }
        finally:
            runner.run(client.__aexit__(None, None, None))
    parts = take_apart(serving_config, steps, rounds) if breakdown else None
    show(found, parts, steps)
    settings = {
        "rounds": rounds,
        "steps": steps,
        "poll_ms": poll_ms,
        "device": device,
        "cpu_threads": cpu_threads,
        "server_cpu_threads": threads,
    }
    figures = {"settings": settings, "target_ms": TARGET, "milliseconds": found, "parts": parts}
    common.save(name, figures)


if __name__ == "__main__":
    common.run(main)
