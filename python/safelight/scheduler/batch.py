"""Forming the next plans of the worker groups: decode what is finished, else advance a batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from safelight.config import SchedulingConfig
from safelight.scheduler import policy
from safelight.scheduler.cost import CostModel
from safelight.scheduler.dispatch import Deal, Draft
from safelight.scheduler.group import Group
from safelight.scheduler.table import Entry, Queue, order
from safelight.wire.messages import Decode, Drop, Encode, Plan, Step

WRITING_BATCHES = 2
"""Batches of frames that may wait for the output manager before decoding pauses."""

ENCODE_AT_ONCE = 4
"""Samples of one encode plan: their prompts, the largest legal ones too, must fit a message."""


def plan_message(op: str, seq: int, release: tuple[str, ...], entries: Sequence[Entry]) -> Plan:
    """The plan as the ranks are sent it."""
    if op == "encode":
        return Encode(seq=seq, release=release, samples=tuple(e.spec for e in entries))
    names = tuple(e.spec.id for e in entries)
    if op == "step":
        return Step(seq=seq, release=release, samples=names)
    if op == "decode":
        return Decode(seq=seq, release=release, samples=names)
    return Drop(seq=seq, release=release, caches=op == "flush")


@dataclass
class Batcher:
    """Chooses what the groups do next. `fresh` holds the samples no group has yet."""

    config: SchedulingConfig
    cost: CostModel
    fresh: Queue = field(default_factory=Queue)

    def choose(
        self, asking: Collection[Group], groups: Collection[Group], now: float
    ) -> list[tuple[Group, list[Entry]]]:
        """The samples of a next plan for each of `asking`, of all groups, that has one.

        All samples of a plan have the same `next_op`.
        """
        plans, forming = [], []
        for group in asking:
            if group.finished and self._decode_now(group):
                plans.append((group, self._take_finished(group)))
            else:
                forming.append(group)
        # If nobody is dirty, nobody has become more urgent than those who run. If one is, all that
        # ask may be dealt to: what it has not begun is to be had.
        if any(group.dirty for group in forming):
            self._form(forming, groups, now)
        plans += [(group, _next_of(group.running)) for group in forming if group.running]
        return plans

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

    def recount(self, group: Group, entry: Entry) -> None:
        """Its steps are fewer or more than were asked for; its first one may be planned already."""
        entry.work = policy.remaining_work(entry, self.cost)
        if entry.planned > entry.steps:  # that was the last
            if entry in group.waiting:
                group.waiting.remove(entry)
            group.retire([entry])
        elif entry in group.finished:  # it was not
            group.finished.remove(entry)
            self.rank(entry)
            group.waiting.add(entry)
            group.dirty = True

    def _take_finished(self, group: Group) -> list[Entry]:
        """Finished samples of one batch key, at most a batch of them."""
        key = group.finished[0].batch_key
        batch = [e for e in group.finished if e.batch_key == key][: self.config.max_batch_size]
        group.finished = [e for e in group.finished if e not in batch]
        return batch

    # ------------------------------------------------------------------------- forming the batches

    def _form(self, forming: Sequence[Group], groups: Collection[Group], now: float) -> None:
        """New running batches from those that run, those that wait and the fresh ones."""
        for group in forming:
            self._give_back(group)
        drafts = [self._draft(group) for group in forming]
        if self.fresh:
            others = [g for g in groups if g.ready and g not in forming]
            deal = Deal(drafts, others, self._seen, now)
            deal.run(self.fresh, self.config.max_batch_size)
        for draft in drafts:
            self._settle(draft)

    def _give_back(self, group: Group) -> None:
        """What it was dealt and has not begun is fresh again."""
        if unbegun := [e for e in group.running if e.planned == 0]:
            group.running = [e for e in group.running if e.planned > 0]
            group.held -= len(unbegun)
            for entry in unbegun:
                entry.group = None
                self.fresh.add(entry)

    def _draft(self, group: Group) -> Draft:
        """The batch from what the group has: the most urgent, and those of its key that join."""
        seconds = self.config.priority_seconds
        for entry in group.running:
            entry.urgency = policy.urgency(entry, seconds)
        lead = min((*group.waiting.head(1), *group.running), key=order, default=None)
        draft = self._empty(group)
        if lead is not None:
            draft.batch = draft.led_by(lead)
        return draft

    def _seen(self, group: Group) -> Draft:
        """The batch of a group that does not ask now."""
        draft = self._empty(group)
        draft.batch = list(group.running)
        for lead in group.running[:1]:  # it has got more urgent since the batch was formed
            lead.urgency = policy.urgency(lead, self.config.priority_seconds)
        return draft

    def _empty(self, group: Group) -> Draft:
        size, limit = len(group.running) + len(group.waiting), self.config.max_batch_size
        return Draft(group, size, self.config.max_running_samples - group.held, limit, self.cost)

    def _settle(self, draft: Draft) -> None:
        """The draft becomes the running batch."""
        group, before = draft.group, draft.group.running
        chosen, stayed = set(map(id, draft.batch)), set(map(id, before))
        for entry in before:
            if id(entry) not in chosen:
                self.rank(entry)
                group.waiting.add(entry)
        for entry in draft.batch:
            if id(entry) not in stayed:
                (self.fresh if entry.group is None else group.waiting).remove(entry)
                group.held += entry.group is None
                entry.group = group.index
        group.running = draft.batch
        group.dirty = draft.reluctant


def _next_of(running: list[Entry]) -> list[Entry]:
    """Those of a batch whose turn it is: who is not encoded goes first."""
    return [e for e in running if e.planned == 0][:ENCODE_AT_ONCE] or running
