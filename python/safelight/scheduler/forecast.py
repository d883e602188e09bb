"""What the scheduler predicts of the samples it has: progress, time left, backlog."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from safelight.scheduler.cost import CostModel
from safelight.scheduler.group import Group
from safelight.scheduler.lane import Lane
from safelight.scheduler.table import Entry
from safelight.wire.messages import Load, SampleProgress

LOOK_AHEAD = 64
"""Waiting samples whose work is summed up for an ETA; more would not make it truer."""

NEWS_S = 1.0
"""Seconds between two such tellings of one model."""

SOON = 16
"""Waiting samples that are told their place whenever the queue has moved on: the others are far
from the front, and telling thousands would hold up the batch."""


def of_running(entries: Sequence[Entry], cost: CostModel) -> tuple[SampleProgress, ...]:
    """Progress of samples that were in one plan (so of one size and batch)."""
    tokens = entries[0].spec.tokens
    step = cost.predict("step", tokens, len(entries))
    decode = cost.predict("decode", tokens)
    return tuple(  # spelled out: it runs for every sample at every step
        SampleProgress(
            sample=e.spec.id,
            attempt=e.spec.attempt,
            state=e.state,
            step=(done := e.steps_done),
            steps=(steps := e.steps),
            eta=(steps - done) * step + decode,
            position=0,
        )
        for e in entries
    )


def of_waiting(entry: Entry, lane: Lane, groups: Collection[Group]) -> SampleProgress:
    """Progress of a sample in the queue: how many are served before it, and for how long.

    Of one that waits for its model to be loaded again, without the time that takes.
    """
    fresh, cost = lane.batcher.fresh, lane.cost
    if entry in lane.later:
        position = len(fresh) + lane.later.index(entry)
    else:
        position = fresh.position(entry)
    ahead = _work(fresh.head(min(position, LOOK_AHEAD)))
    ahead += _work(e for group in groups for e in group.running)
    ahead /= _ready(groups)
    return SampleProgress(
        sample=entry.spec.id,
        attempt=entry.spec.attempt,
        state=entry.state,
        step=entry.steps_done,
        steps=entry.steps,
        eta=ahead * efficiency(groups, cost) + entry.work,
        position=position,
    )


def load(entries: Collection[Entry], groups: Collection[Group], lanes: Iterable[Lane]) -> Load:
    """A sum over all samples: for when some come or go, not for every step. Of several models, that
    of the one that takes longest."""
    work: dict[str, float] = defaultdict(float)
    for entry in entries:
        work[entry.spec.model] += entry.work
    backlogs = [0.0]
    for lane in lanes:
        mine = lane.groups(groups)
        backlogs.append(work[lane.model] / _ready(mine) * efficiency(mine, lane.cost))
    return Load(unfinished=len(entries), backlog=max(backlogs))


def efficiency(groups: Iterable[Group], cost: CostModel) -> float:
    """Seconds a sample-step costs in the first running batch, over what it costs alone."""
    for group in groups:
        if group.running:
            tokens, size = group.running[0].spec.tokens, len(group.running)
            alone = cost.predict("step", tokens) * size
            return min(1.0, cost.predict("step", tokens, size) / alone)
    return 1.0


def _work(entries: Iterable[Entry]) -> float:
    return sum(entry.work for entry in entries)


def _ready(groups: Iterable[Group]) -> int:
    """Groups that share the work."""
    return max(1, sum(group.ready for group in groups))
