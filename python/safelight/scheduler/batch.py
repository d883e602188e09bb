"""Forming the next plan of one worker group: decode what is finished, else advance a batch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from safelight.config import SchedulingConfig
from safelight.scheduler import policy
from safelight.scheduler.cost import CostModel
from safelight.scheduler.table import Entry, Queue
from safelight.wire.messages import Plan, Report

WRITING_BATCHES = 2
"""Batches of frames that may wait for the output manager before decoding pauses."""

ENCODE_AT_ONCE = 4
"""Samples of one encode plan: their prompts, the largest legal ones too, must fit a message."""

PLANS_AHEAD = 2
"""The running plan and one more, so that a step never waits for the scheduler."""


@dataclass
class Pending:
    """A plan that was sent and is not answered by every rank."""

    plan: Plan
    op: str
    entries: list[Entry]
    sent: float
    missing: set[int]
    """Ranks that have not answered."""
    report: Report | None = None
    """Rank 0's answer."""


@dataclass
class Group:
    """One worker group as the scheduler sees it."""

    index: int
    world_size: int
    pids: dict[int, int] = field(default_factory=dict)
    """Process id by rank, of those that said hello."""
    waiting: Queue = field(default_factory=Queue)
    """Samples it holds that are not in the running batch (preempted, or just encoded)."""
    running: list[Entry] = field(default_factory=list)
    finished: list[Entry] = field(default_factory=list)
    """All steps planned, to be decoded."""
    release: list[str] = field(default_factory=list)
    """Samples the ranks may forget, told with the next plan."""
    pending: deque[Pending] = field(default_factory=deque)
    held: int = 0
    """Samples whose latents it holds."""
    writing: int = 0
    """Samples whose frames wait in shared memory for the output manager."""
    dirty: bool = True
    """Whether the batch must be formed anew: somebody came or went."""

    @property
    def ready(self) -> bool:
        return len(self.pids) == self.world_size

    def find(self, seq: int) -> Pending | None:
        """The plan in flight with this number."""
        return next((p for p in self.pending if p.plan.seq == seq), None)


@dataclass
class Batcher:
    """Chooses what a group does next. `fresh` holds the samples no group has yet."""

    config: SchedulingConfig
    cost: CostModel
    fresh: Queue = field(default_factory=Queue)

    def choose(self, group: Group, now: float) -> list[Entry]:
        """The samples of the next plan; all have the same `next_op`. Empty: nothing to do."""
        if group.finished and group.writing < WRITING_BATCHES * self.config.max_batch_size:
            return self._take_finished(group)
        if group.dirty or self._outranked(group, now):
            self._form(group, now)
            group.dirty = False
        fresh = [e for e in group.running if e.planned == 0]
        return fresh[:ENCODE_AT_ONCE] or group.running

    def enqueue(self, entry: Entry, now: float) -> None:
        """`entry` waits from `now`, at its group or for any group."""
        entry.since = now
        entry.work = policy.remaining_work(entry, self.cost)
        entry.urgency = policy.waiting_urgency(entry, self.config.priority_seconds)

    def _take_finished(self, group: Group) -> list[Entry]:
        """Finished samples of one batch key, at most a batch of them."""
        key = group.finished[0].spec.batch_key
        batch = [e for e in group.finished if e.spec.batch_key == key][: self.config.max_batch_size]
        group.finished = [e for e in group.finished if e not in batch]
        return batch

    def _outranked(self, group: Group, now: float) -> bool:
        """Whether somebody who waits goes before everybody who runs."""
        best = self._best_waiting(group)
        if best is None or not group.running:
            return best is not None
        boost = self.config.priority_seconds
        first = min(policy.running_urgency(e, boost) for e in group.running)
        return best.urgency - policy.AGEING * now < first

    def _best_waiting(self, group: Group) -> Entry | None:
        held = group.waiting.first()
        fresh = self.fresh.first() if self._room(group) > 0 else None
        if held is None or fresh is None:
            return held or fresh
        return min(held, fresh, key=lambda e: (e.urgency, e.serial))

    def _room(self, group: Group) -> int:
        """How many more samples the group may hold."""
        return self.config.max_running_samples - group.held

    def _form(self, group: Group, now: float) -> None:
        """A new running batch from those that run and those that wait."""
        before = group.running
        for entry in before:
            self.enqueue(entry, now)
            self._queue_of(group, entry).add(entry)
        group.running = []
        if (lead := self._best_waiting(group)) is not None:
            group.running = self._gather(group, lead)
        for entry in group.running:
            self._queue_of(group, entry).remove(entry)
            policy.earn(entry, now)
            group.held += entry.group is None
            entry.group = group.index

    def _gather(self, group: Group, lead: Entry) -> list[Entry]:
        """`lead` and those of its key that make the predicted finishing times better."""
        key, limit = lead.spec.batch_key, self.config.max_batch_size
        candidates = group.waiting.first_of(key, limit) + self.fresh.first_of(key, limit)
        candidates.sort(key=lambda e: (e.urgency, e.serial))
        batch, room = [lead], self._room(group) - (lead.group is None)
        for entry in candidates:
            if len(batch) == limit:
                break
            if entry is lead or (entry.group is None and room <= 0):
                continue
            if policy.joins(batch, entry, self.cost):
                batch.append(entry)
                room -= entry.group is None
        return batch

    def _queue_of(self, group: Group, entry: Entry) -> Queue:
        return self.fresh if entry.group is None else group.waiting
