"""`safelight bench`: how fast this machine makes what was asked for, and what each rank does."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from safelight.config import EngineConfig
from safelight.wire.messages import GroupStatus, PlanDone, RankInfo

if TYPE_CHECKING:
    from rich.table import Table

    from safelight.engine import Job


class BenchOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `bench` takes besides the engine's configuration and sampling parameters."""

    prompt: Annotated[str, Meta(description="What to generate.")] = "a red circle moving left"
    requests: Annotated[
        int, Meta(ge=1, le=100_000, description="Samples made, after one that does not count.")
    ] = 8
    ranks: Annotated[
        bool, Meta(description="A row for every rank: step time, bytes moved, memory.")
    ] = False
    json: Annotated[bool, Meta(description="Print JSON instead of tables.")] = False


class RankFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One rank during the run."""

    group: int
    rank: int
    device: str
    load_seconds: float
    weights: dict[str, int]
    """Bytes by component."""
    peak_memory: int
    """Bytes: allocated on CUDA, resident on the CPU."""
    steps: int
    step_seconds: float
    """Median of a step plan, whatever its batch."""
    bytes_per_step: dict[str, float]
    """Mean bytes sent to other ranks in a step plan, by axis and collective."""
    bytes_elsewhere: dict[str, int]
    """Bytes sent in all other plans together: encoding and decoding."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    model: str
    layout: str
    requests: int
    seconds: float
    """From the first submission to the last file."""
    per_second: float
    steps_per_second: float
    """Denoising steps of all samples."""
    batch: float
    """Mean samples of a step plan."""
    startup_seconds: float
    ranks: list[RankFigures]


def bench(config: EngineConfig, sampling: Mapping[str, Any], options: BenchOptions) -> int:
    """Run, print, and return the exit status."""
    figures = measure(config, sampling, options)
    if options.json:
        print(json.dumps(msgspec.to_builtins(figures), indent=2))
        return 0
    print(_summary(figures))
    if options.ranks:
        from rich.console import Console

        console = Console(file=sys.stdout, highlight=False)
        console.print(_rank_table(figures.ranks))
        console.print(_traffic_table(figures.ranks))
    return 0


def measure(config: EngineConfig, sampling: Mapping[str, Any], options: BenchOptions) -> Figures:
    """The figures of `options.requests` samples, as many of them at once as may queue."""
    from safelight.engine import Engine
    from safelight.parallel.layout import complete

    plans: list[PlanDone] = []
    began = time.monotonic()
    with Engine(config, on_plan=plans.append) as engine:
        startup = time.monotonic() - began
        engine.submit(options.prompt, sampling=sampling).wait()
        plans.clear()
        began = time.monotonic()
        through_window(
            lambda seed: engine.submit(options.prompt, sampling={"seed": seed, **sampling}),
            options.requests,
            config.scheduling.max_queued_samples,
        )
        seconds = time.monotonic() - began
        groups = engine.groups()
        name = engine.card.name
    steps = [plan for plan in plans if plan.op == "step"]
    done = sum(len(plan.samples) for plan in steps)
    return Figures(
        model=name,
        layout=complete(config.parallel).flags(),
        requests=options.requests,
        seconds=seconds,
        per_second=options.requests / seconds,
        steps_per_second=done / seconds,
        batch=done / max(1, len(steps)),
        startup_seconds=startup,
        ranks=list(rank_figures(plans, groups)),
    )


def through_window(submit: Callable[[int], Job], requests: int, window: int) -> None:
    """Submit numbers 0 to `requests` and wait for all, never more than `window` unfinished: the
    engine refuses what exceeds its queue."""
    unfinished: deque[Job] = deque()
    for number in range(requests):
        if len(unfinished) == window:
            unfinished.popleft().wait()
        unfinished.append(submit(number))
    for job in unfinished:
        job.wait()


def rank_figures(plans: Sequence[PlanDone], groups: Iterable[GroupStatus]) -> Iterable[RankFigures]:
    """What the plans' reports say of every rank of `groups`."""
    for group in groups:
        mine = [plan for plan in plans if plan.group == group.group]
        for info in group.ranks:
            yield _figures_of(group.group, info, mine)


def _figures_of(group: int, info: RankInfo, plans: Sequence[PlanDone]) -> RankFigures:
    in_steps: dict[str, int] = defaultdict(int)
    elsewhere: dict[str, int] = defaultdict(int)
    times, peak = [], info.peak_memory
    for plan in plans:
        for cost in plan.ranks:
            if cost.rank != info.rank:
                continue
            peak = max(peak, cost.peak_memory)
            if plan.op == "step":
                times.append(cost.seconds)
            where = in_steps if plan.op == "step" else elsewhere
            for name, sent in cost.traffic.items():
                where[name] += sent
    return RankFigures(
        group=group,
        rank=info.rank,
        device=info.device,
        load_seconds=info.load_seconds,
        weights=info.weights,
        peak_memory=peak,
        steps=len(times),
        step_seconds=statistics.median(times) if times else 0.0,
        bytes_per_step={name: sent / len(times) for name, sent in in_steps.items()},
        bytes_elsewhere=dict(elsewhere),
    )


# --------------------------------------------------------------------------------------- printing


def _summary(figures: Figures) -> str:
    return (
        f"{figures.model}, {figures.layout}: {figures.requests} samples, {figures.seconds:.2f} s, "
        f"{figures.per_second:.2f} a second, {figures.steps_per_second:.1f} steps a second, "
        f"{figures.batch:.1f} samples a forward; started in {figures.startup_seconds:.1f} s"
    )


def _rank_table(ranks: Sequence[RankFigures]) -> Table:
    table = _table("rank", "device", "loaded in", "weights", "peak memory", "steps", "median step")
    for rank in ranks:
        table.add_row(
            f"{rank.group}.{rank.rank}",
            rank.device,
            f"{rank.load_seconds:.1f} s",
            _mebibytes(sum(rank.weights.values())),
            _mebibytes(rank.peak_memory),
            str(rank.steps),
            f"{rank.step_seconds * 1e3:.2f} ms",
        )
    return table


def _traffic_table(ranks: Sequence[RankFigures]) -> Table:
    table = _table("rank", "collective", "bytes a step", "bytes encoding and decoding")
    for rank in ranks:
        for name in sorted({*rank.bytes_per_step, *rank.bytes_elsewhere}):
            table.add_row(
                f"{rank.group}.{rank.rank}",
                name,
                f"{rank.bytes_per_step.get(name, 0):,.0f}",
                f"{rank.bytes_elsewhere.get(name, 0):,}",
            )
    return table


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in headings[:2] else "right")
    return table


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
