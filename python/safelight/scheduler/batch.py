"""Forming the next plan of one worker group: decode what is finished, else advance a batch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from safelight.config import SchedulingConfig
from safelight.scheduler import policy
from safelight.scheduler.cost import CostModel
from safelight.scheduler.table import Entry, Queue, order
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

    def choose(self, group: Group) -> list[Entry]:
        """The samples of the next plan; all have the same `next_op`. Empty: nothing to do."""
        if group.finished and self._decode_now(group):
            return self._take_finished(group)
        if group.dirty:  # else nobody has become more urgent than those who run
            self._form(group)
            group.dirty = False
        fresh = [e for e in group.running if e.planned == 0]
        return fresh[:ENCODE_AT_ONCE] or group.running

    def _decode_now(self, group: Group) -> bool:
        """Whether finished samples are decoded before the next step."""
        if group.writing >= WRITING_BATCHES * self.config.max_batch_size:
            return False
        if not group.running or len(group.finished) >= self.config.max_batch_size:
            return True
        waiting = len(group.waiting) + len(self.fresh)
        return not policy.decode_waits(group.finished, group.running, waiting, self.cost)

    def rank(self, entry: Entry) -> None:
        """Set the place in the order of a sample that begins to wait."""
        entry.work = policy.remaining_work(entry, self.cost)
        entry.urgency = policy.urgency(entry, self.config.priority_seconds)

    def _take_finished(self, group: Group) -> list[Entry]:
        """Finished samples of one batch key, at most a batch of them."""
        key = group.finished[0].spec.batch_key
        batch = [e for e in group.finished if e.spec.batch_key == key][: self.config.max_batch_size]
        group.finished = [e for e in group.finished if e not in batch]
        return batch

    def _form(self, group: Group) -> None:
        """A new running batch from those that run and those that wait."""
        before = group.running
        for entry in before:
            entry.urgency = policy.urgency(entry, self.config.priority_seconds)
        group.running = self._gather(group, before)
        chosen = set(map(id, group.running))
        for entry in before:
            if id(entry) not in chosen:
                self.rank(entry)
                group.waiting.add(entry)
        stayed = set(map(id, before))
        for entry in group.running:
            if id(entry) not in stayed:
                self._queue_of(group, entry).remove(entry)
                group.held += entry.group is None
                entry.group = group.index

    def _gather(self, group: Group, running: list[Entry]) -> list[Entry]:
        """The most urgent of all, and those of its key that make finishing times better."""
        room, limit = self._room(group), self.config.max_batch_size
        firsts = [group.waiting.first(), self.fresh.first() if room > 0 else None, *running]
        lead = min((e for e in firsts if e is not None), key=order, default=None)
        if lead is None:
            return []
        key = lead.spec.batch_key
        candidates = [e for e in running if e.spec.batch_key == key]
        candidates += group.waiting.first_of(key, limit) + self.fresh.first_of(key, limit)
        candidates.sort(key=order)
        batch, room = [lead], room - (lead.group is None)
        for entry in candidates:
            if len(batch) == limit:
                break
            if entry is lead or (entry.group is None and room <= 0):
                continue
            if policy.joins(batch, entry, self.cost):
                batch.append(entry)
                room -= entry.group is None
        return batch

    def _room(self, group: Group) -> int:
        """How many more samples the group may hold."""
        return self.config.max_running_samples - group.held

    def _queue_of(self, group: Group, entry: Entry) -> Queue:
        return self.fresh if entry.group is None else group.waiting
