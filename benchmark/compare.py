"""The server against the plain loop, in one run: throughput and latency of the same jobs.

    python benchmark/compare.py --jobs 48 --concurrency 16 --repeats 3

Both sides are loaded once and take turns (loop, server, loop, server, ...), the other one being
idle. Every repeat has jobs of its own, so that nothing is served from a cache; both sides get the
same ones. The load generator runs on the same machine and its CPU time is at the server's expense.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

import common
import workload
from common import Spread, median
from diffusers_loop import LoopProcess, WriterOption
from server import Server
from serving import Poll, load
from workload import Job, Outcome, Report


class Side(msgspec.Struct):
    """One side over all repeats."""

    repeats: list[Report]
    jobs_per_second: float = 0.0
    """Median over the repeats, as the other figures."""
    steps_per_second: float = 0.0
    latency_p50: float = 0.0
    latency_p95: float = 0.0
    latency_p99: float = 0.0

    def __post_init__(self) -> None:
        self.jobs_per_second = median([r.jobs_per_second for r in self.repeats])
        self.steps_per_second = median([r.steps_per_second for r in self.repeats])
        latencies = [r.latency for r in self.repeats if r.latency is not None]
        for name in ("p50", "p95", "p99") if latencies else ():
            setattr(self, f"latency_{name}", median([getattr(s, name) for s in latencies]))


class Comparison(msgspec.Struct):
    """Everything a run found out."""

    loop: Side
    server: Side
    ratios: list[float]
    """Server over loop, jobs per second, by repeat."""
    ratio: float
    latency_in_line: Spread
    """Seconds; what the same clients would have waited for the plain loop."""
    identical_files: float
    """Share of the server's files that equal the loop's byte for byte (PNG: by pixels)."""
    cpu_seconds_per_job: dict[str, float]
    """Of the server's processes."""


def take_turns(
    loop: LoopProcess, server: Server, rounds: Sequence[Sequence[Job]], clients: int, poll_ms: int
) -> tuple[list[list[Outcome]], list[list[Outcome]], dict[str, float]]:
    """Outcomes of the loop and of the server by repeat, and the server's CPU seconds by process."""
    looped, served = [], []
    cpu: dict[str, float] = {}
    for number, jobs in enumerate(rounds, 1):
        looped.append(loop.run(jobs))
        before = server.cpu_seconds()
        served.append(load(server.base_url, jobs, concurrency=clients, poll_ms=poll_ms))
        for name, used in server.cpu_seconds().items():
            cpu[name] = cpu.get(name, 0) + used - before.get(name, 0)
        common.console.print(
            f"repeat {number} of {len(rounds)}: loop {Report.of(looped[-1]).seconds:.1f} s, "
            f"server {Report.of(served[-1]).seconds:.1f} s"
        )
    return looped, served, cpu


def compare(
    looped: list[list[Outcome]], served: list[list[Outcome]], cpu: dict[str, float], clients: int
) -> Comparison:
    loop = Side([Report.of(outcomes) for outcomes in looped])
    server = Side([Report.of(outcomes) for outcomes in served])
    pairs = zip(loop.repeats, server.repeats, strict=True)
    ratios = [ours.jobs_per_second / theirs.jobs_per_second for theirs, ours in pairs]
    files = list(zip(_flat(looped), _flat(served), strict=True))
    return Comparison(
        loop=loop,
        server=server,
        ratios=ratios,
        ratio=median(ratios),
        latency_in_line=Spread.of(in_line(looped, clients)),
        identical_files=sum(a.sha256 == b.sha256 for a, b in files) / len(files),
        cpu_seconds_per_job={name: used / len(files) for name, used in cpu.items()},
    )


def in_line(looped: list[list[Outcome]], clients: int) -> list[float]:
    """Latencies of clients who stand in line for the loop, over all repeats."""
    return [
        latency
        for outcomes in looped
        for latency in workload.latencies_in_line([o.latency for o in outcomes], clients)
    ]


def _flat(runs: list[list[Outcome]]) -> list[Outcome]:
    return list(itertools.chain.from_iterable(runs))


def show(found: Comparison, title: str) -> None:
    loop, server, line = found.loop, found.server, found.latency_in_line
    rows = [
        ("jobs/s", loop.jobs_per_second, server.jobs_per_second),
        ("denoising steps/s", loop.steps_per_second, server.steps_per_second),
        ("latency p50, s", line.p50, server.latency_p50),
        ("latency p95, s", line.p95, server.latency_p95),
        ("latency p99, s", line.p99, server.latency_p99),
    ]
    common.table(
        title,
        ("figure (median of repeats)", "plain loop", "Safelight", "ratio"),
        [(name, f"{a:.3f}", f"{b:.3f}", f"{b / a:.2f}") for name, a, b in rows],
    )
    spent = ", ".join(
        f"{name} {1000 * seconds:.0f}"
        for name, seconds in sorted(found.cpu_seconds_per_job.items(), key=lambda item: -item[1])
        if seconds >= 0.001
    )
    common.console.print(
        f"throughput: {found.ratio:.2f}x "
        f"(repeats {', '.join(f'{ratio:.2f}' for ratio in found.ratios)}); "
        f"identical files: {100 * found.identical_files:.0f} %; "
        f"failures: {sum(r.failures for r in server.repeats)}\n"
        "The loop's latencies are those of the same clients standing in line for it.\n"
        f"The server's CPU time per job, ms: {spent}"
    )


def plot(
    found: Comparison, looped: list[list[Outcome]], served: list[list[Outcome]],
    clients: int, path: Path,
) -> None:  # fmt: skip
    """Throughput by repeat and the distribution of latencies."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        common.console.print("no plot: matplotlib is missing (pip install 'safelight[bench]')")
        return
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    bars, curve = figure.subplots(1, 2)
    sides = (("plain loop", found.loop, "#8a8f98"), ("Safelight", found.server, "#c2410c"))
    for place, (name, side, color) in enumerate(sides):
        bars.bar(place, side.jobs_per_second, color=color, width=0.6, label=name)
        each = [report.jobs_per_second for report in side.repeats]
        bars.scatter([place] * len(each), each, color="black", s=12, zorder=3)
    bars.set_xticks([0, 1], [name for name, _, _ in sides])
    bars.set_ylabel("jobs per second")
    bars.set_title(f"Throughput: {found.ratio:.2f}x (dots: repeats)", fontsize=10)
    done = [outcome.latency for outcome in _flat(served) if outcome.error is None]
    latencies = (in_line(looped, clients), done)
    for (name, _, color), values in zip(sides, latencies, strict=True):
        curve.ecdf(values, color=color, label=name)
    curve.set_xlabel(f"latency with {clients} clients, seconds")
    curve.set_ylabel("share of jobs")
    curve.set_xlim(left=0)
    curve.set_title("Latency", fontsize=10)
    curve.legend(frameon=False, fontsize=9)
    for axes in (bars, curve):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main(
    jobs: workload.Jobs = 48,
    concurrency: Annotated[int, typer.Option(min=1, help="Clients of the server.")] = 16,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    steps: workload.Steps = workload.DEFAULT_STEPS,
    images: workload.Images = 0.0,
    seed: common.Seed = 0,
    poll_ms: Poll = 0,
    writer: WriterOption = "diffusers",
    model_path: common.ModelPath = "builtin:shapes",
    device: common.Device = "auto",
    cpu_threads: common.Threads = 0,
    server_cpu_threads: common.ServerThreads = None,
    name: common.Name = "compare",
) -> None:
    """The server against the plain loop."""
    config = common.engine_config(model_path, device, cpu_threads)
    threads = cpu_threads if server_cpu_threads is None else server_cpu_threads
    serving_config = common.engine_config(model_path, device, threads)
    counts = workload.parse_steps(steps)
    rounds = [
        workload.make_jobs(jobs, counts, images=images, seed=seed + number)
        for number in range(repeats)
    ]
    with LoopProcess(config, writer) as loop, Server(serving_config) as server:
        load(server.base_url, rounds[0][:2], poll_ms=poll_ms)  # the first connections
        looped, served, cpu = take_turns(loop, server, rounds, concurrency, poll_ms)
    found = compare(looped, served, cpu, concurrency)
    settings: dict[str, Any] = {
        "jobs": jobs, "concurrency": concurrency, "steps": counts, "images": images,
        "poll_ms": poll_ms, "writer": writer, "model_path": model_path,
        "device": device, "cpu_threads": cpu_threads,
        "server_cpu_threads": threads,
    }  # fmt: skip
    show(found, f"{repeats} x {jobs} jobs, {concurrency} clients")
    path = common.save(name, {"settings": settings, "comparison": found})
    plot(found, looped, served, concurrency, path.with_suffix(".png"))
    if any(report.failures for report in found.server.repeats):
        raise typer.Exit(1)


if __name__ == "__main__":
    common.run(main)
