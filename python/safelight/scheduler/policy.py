"""Who goes first, and who may share a forward.

**Precedence.** The sample with the least predicted remaining work goes first (shortest remaining
processing time, Schrage 1968: least mean response time), a level of priority being worth a fixed
number of seconds. Against starvation a waiting sample earns credit, `AGEING` seconds a second, and
a running one spends it, second for second. So a job is overtaken, however many keep coming,
only by those that arrive within about (its work + the gap in priority) / `AGEING` seconds of it.

All waiting samples earn at the same rate, so their order does not depend on the clock and each is
sorted once, by `waiting_urgency`; only the comparison with running samples needs the time.

**Sharing.** A sample joins a batch when the sum of the predicted finishing times gets better than
if the two took turns.
"""

from __future__ import annotations

from collections.abc import Sequence

from safelight.scheduler.cost import CostModel
from safelight.scheduler.table import Entry

AGEING = 0.25
"""Seconds of credit per second of waiting."""


def remaining_work(entry: Entry, cost: CostModel) -> float:
    """Predicted seconds that are left to plan, if it ran alone."""
    tokens, planned, steps = entry.spec.tokens, entry.planned, entry.steps
    seconds = 0.0
    if planned == 0:
        seconds += cost.predict("encode", tokens)
    if planned <= steps:
        seconds += (steps + 1 - max(planned, 1)) * cost.predict("step", tokens)
    if planned <= steps + 1:
        seconds += cost.predict("decode", tokens)
    return seconds


def waiting_urgency(entry: Entry, priority_seconds: float) -> float:
    """Sort key of a waiting sample, least first; constant while it waits."""
    return running_urgency(entry, priority_seconds) + AGEING * entry.since


def running_urgency(entry: Entry, priority_seconds: float) -> float:
    """Comparable with `waiting_urgency(...) - AGEING * now`."""
    return entry.work - entry.credit - entry.spec.priority * priority_seconds


def earn(entry: Entry, now: float) -> None:
    """Credit for the time it waited until `now`."""
    entry.credit += AGEING * max(0.0, now - entry.since)


def spend(entry: Entry, seconds: float) -> None:
    """It ran: less work is left, and its credit is used up first."""
    entry.work = max(0.0, entry.work - seconds)
    entry.credit = max(0.0, entry.credit - seconds)


def joins(batch: Sequence[Entry], candidate: Entry, cost: CostModel) -> bool:
    """Whether the sum of finishing times is better with `candidate` in `batch`.

    Compared with the better of the two turns: the batch first, or the candidate first.
    """
    tokens, size = candidate.spec.tokens, len(batch)
    alone, apart = cost.predict("step", tokens, 1), cost.predict("step", tokens, size)
    together = cost.predict("step", tokens, size + 1)
    mine = _steps_left(candidate)
    theirs = [_steps_left(entry) for entry in batch]
    longest = max(theirs)
    work_theirs = sum(theirs) * apart
    batch_first = work_theirs + longest * apart + mine * alone
    candidate_first = mine * alone + size * mine * alone + work_theirs
    shared = sum(min(left, mine) for left in theirs)
    joined = shared * together + (sum(theirs) - shared) * apart
    joined += min(mine, longest) * together + max(0, mine - longest) * alone
    return joined <= min(batch_first, candidate_first)


def _steps_left(entry: Entry) -> int:
    return entry.steps + 1 - max(entry.planned, 1)
