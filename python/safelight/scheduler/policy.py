"""Who goes first, and who may share a forward.

**Precedence.** The sample with the least predicted remaining work goes first (shortest remaining
processing time, Schrage 1968: least mean response time), a level of priority being worth a fixed
number of seconds, and each second of age `AGEING` seconds. As all age alike, the order of two
samples does not depend on the clock: the sort key is `work - priority + AGEING * arrival`. Two
things follow. A running sample only gets more urgent, so nobody but a newcomer can displace it; and
however many newcomers there are, a sample is overtaken only by those that arrive within (its work +
the gap in priority) / `AGEING` seconds of it.

**Sharing.** A sample joins a batch when the predicted finishing times get better than if the two
took turns: of those in the system, or, where sharing saves much, of those still to come.
"""

from __future__ import annotations

from collections.abc import Sequence

from safelight.scheduler.cost import CostModel
from safelight.scheduler.table import Entry

AGEING = 0.25
"""What a second of age is worth, in seconds of work."""

DECODE_HORIZON = 4
"""Steps that finished samples may wait for others to be decoded with."""

SAVING = 0.1
"""A shared step that saves this share of two turns' time is worth the delay of its members."""


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


def urgency(entry: Entry, priority_seconds: float) -> float:
    """Sort key, least first."""
    return entry.work - entry.spec.priority * priority_seconds + AGEING * entry.arrived


def joins(batch: Sequence[Entry], candidate: Entry, cost: CostModel) -> bool:
    """Whether `candidate` should share forwards with `batch`.

    Under load, yes if a shared step saves `SAVING` of what two turns cost: then everybody who is
    still to come finishes earlier (by Little's law, time in the system is work in it over
    throughput). Else, yes if the sum of the finishing times of these samples gets better.
    """
    seconds, size = cost.over_batch("step", candidate.spec.tokens), len(batch)
    alone, apart, together = seconds(1), seconds(size), seconds(size + 1)
    if together <= (1 - SAVING) * (apart + alone):
        return True
    return _finishes_sooner(batch, candidate, alone, apart, together)


def _finishes_sooner(
    batch: Sequence[Entry], candidate: Entry, alone: float, apart: float, together: float
) -> bool:
    """Against the better of the two turns: the batch first, or the candidate first.

    `alone`, `apart` and `together` are seconds of a step: of the candidate, the batch, and both.
    """
    mine = steps_left(candidate)
    theirs = [steps_left(entry) for entry in batch]
    longest, total = max(theirs), sum(theirs)
    batch_first = total * apart + longest * apart + mine * alone
    candidate_first = mine * alone + len(batch) * mine * alone + total * apart
    shared = sum(min(left, mine) for left in theirs)
    joined = shared * together + (total - shared) * apart
    joined += min(mine, longest) * together + max(0, mine - longest) * alone
    return joined <= min(batch_first, candidate_first)


def decode_waits(
    finished: Sequence[Entry], running: Sequence[Entry], waiting: int, cost: CostModel
) -> bool:
    """Whether to decode `finished` some steps later, together with those that finish by then.

    One decode of all saves time for everybody; the steps in between cost it the finished ones.
    """
    tokens, count = finished[0].spec.tokens, len(finished)
    if running[0].batch_key != finished[0].batch_key:
        return False
    step = cost.predict("step", tokens, len(running))
    for ahead in range(1, DECODE_HORIZON + 1):
        soon = sum(1 for entry in running if entry.planned + ahead > entry.steps)
        if soon:
            saved = cost.predict("decode", tokens, count) + cost.predict("decode", tokens, soon)
            saved -= cost.predict("decode", tokens, count + soon)
            return saved * (len(running) + waiting) > count * ahead * step
    return False


def steps_left(entry: Entry) -> int:
    """Denoising steps that are not planned."""
    return entry.steps + 1 - max(entry.planned, 1)
