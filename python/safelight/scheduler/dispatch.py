"""Which worker group a fresh sample goes to.

**Dispatch.** A fresh sample goes where it is predicted to add least to the finishing times: its
own, and those of the samples it would delay there (the greedy rule of Anand, Garg and Kumar,
Resource Augmentation for Weighted Flow-time Explained by Dual Fitting, SODA 2012). What a group was
sent counts with what is left of it, batch-mates with what sharing costs them, whoever is overtaken
with the whole of the work. So an idle group is always best, and to join a batch is better than to
preempt strangers. Equally good groups take turns: first the one that has computed least.

**Late binding.** A sample is bound to a group when the group begins it, not before. Groups are
dealt to when they ask for a plan; a sample for which a group that has its plans already is better
by `MARGIN` is left for that one, and considered anew whenever anybody asks. What a group was dealt
and has not begun is dealt again when its batch is formed anew. So a slow group hoards nothing, and
one that does not answer looks worse with every second it is late.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from safelight.scheduler import policy
from safelight.scheduler.cost import CostModel
from safelight.scheduler.group import Group
from safelight.scheduler.table import Entry, Queue, order

MARGIN = 0.1
"""By this share another group must be better for a sample to wait for it: predictions err."""


@dataclass(slots=True)
class Draft:
    """The batch a group would run next."""

    group: Group
    size: int
    """Samples the group would have begun, in the batch or not."""
    room: int
    """How many more it may begin."""
    limit: int
    """Most samples of a batch."""
    cost: CostModel
    batch: list[Entry] = field(default_factory=list)
    """Most urgent first."""
    taken: list[Entry] = field(default_factory=list)
    """Fresh samples it was dealt."""
    reluctant: bool = False
    """Whether it left a sample to a better group: it asks again, lest that one does not come."""

    @property
    def key(self) -> str | None:
        return self.batch[0].batch_key if self.batch else None

    def would_follow(self, entry: Entry) -> bool:
        """Whether `entry` would lead its batch."""
        return self.room > 0 and (not self.batch or order(entry) < order(self.batch[0]))

    def closed(self, entry: Entry) -> bool:
        """Whether neither `entry` nor a less urgent sample could join the batch."""
        full = len(self.batch) >= self.limit
        return self.room <= 0 or (full and order(entry) > order(self.batch[-1]))

    def offer(self, entry: Entry) -> list[Entry] | None:
        """The batch if `entry` came; None if it would not be in it."""
        if not self.batch:
            return [entry] if self.room > 0 else None
        if entry.batch_key == self.key and not self.closed(entry):
            mates = self.batch[: self.limit - 1]
            if not mates or policy.joins(mates, entry, self.cost):
                insort(mates, entry, key=order)
                return mates
        return self.led_by(entry) if self.would_follow(entry) else None

    def led_by(self, lead: Entry) -> list[Entry]:
        """`lead`, and those of its key that the group has, if that makes finishing times better."""
        key, batch = lead.batch_key, [lead]
        others = [e for e in (*self.group.running, *self.taken) if e.batch_key == key]
        others += self.group.waiting.first_of(key, self.limit)
        for entry in sorted(others, key=order):
            if len(batch) == self.limit:
                break
            if entry is not lead and policy.joins(batch, entry, self.cost):
                batch.append(entry)
        return batch

    def take(self, entry: Entry, batch: list[Entry]) -> None:
        """`batch` is what `offer` returned."""
        self.batch = batch
        self.taken.append(entry)
        self.size += 1
        self.room -= 1

    def added(self, entry: Entry, batch: list[Entry], now: float) -> float:
        """Seconds by which all finishing times together grow if `entry` comes, so predicted."""
        cost, tokens, steps = self.cost, entry.spec.tokens, entry.steps
        seconds = cost.over_batch("step", tokens)
        alone = seconds(1)
        slope = seconds(2) - alone
        left = [policy.steps_left(e) for e in batch if e is not entry]
        shared = slope * sum([mine if mine < steps else steps for mine in left])
        its_own = self.group.busy(now) + entry.work + shared
        mates = shared + cost.predict("encode", tokens) * len(left)
        # Those who are not in the batch wait for as much longer as it takes.
        longer = entry.work - (alone - slope) * min(steps, max(left, default=0))
        return its_own + mates + max(longer, 0.0) * (self.size - len(left))


class Offer(NamedTuple):
    seconds: float
    """By which all finishing times together would grow."""
    draft: Draft
    batch: list[Entry]
    """What the draft's batch would be."""


@dataclass
class Deal:
    """Deals fresh samples to the drafts of the groups that form their batches."""

    forming: list[Draft]
    bystanders: list[Group]
    """The other groups that serve."""
    see: Callable[[Group], Draft]
    """The batch a bystander runs."""
    now: float
    _seen: dict[int, Draft] = field(default_factory=dict)
    _placed: set[int] = field(default_factory=set)

    def run(self, fresh: Queue, limit: int) -> None:
        """First those that would lead a batch, then those that would share one."""
        for entry in islice(fresh, limit + len(self.forming)):
            if not any(draft.would_follow(entry) for draft in self.forming):
                break  # nor may anybody after it
            self._place(entry, patient=True)
        for key in {draft.key: None for draft in self.forming if draft.key is not None}:
            same = [draft for draft in self.forming if draft.key == key]
            # Nobody waits for a better group while there are more than all groups can take.
            patient = fresh.count_of(key) <= limit * (len(same) + len(self.bystanders))
            for entry in fresh.first_of(key, limit * len(same)):
                if id(entry) in self._placed:
                    continue
                if all(draft.closed(entry) for draft in same):
                    break
                self._place(entry, patient=patient)

    def _place(self, entry: Entry, *, patient: bool) -> None:
        """With the best of the groups that form a batch; nowhere if a bystander is better."""
        takers = _takers(self.forming, entry)
        if not takers:
            return
        self._placed.add(id(entry))
        if len(takers) == 1 and not (patient and self.bystanders):
            takers[0][0].take(entry, takers[0][1])
            return
        best = self._best(takers, entry)
        enough = (1 - MARGIN) * best.seconds
        if patient:
            others = _takers(self._drafts(below=enough - entry.work), entry)
            if others and (other := self._best(others, entry)).seconds < enough:
                other.draft.take(entry, other.batch)
                other.draft.group.dirty = True
                for draft, _ in takers:
                    draft.reluctant = True
                return
        best.draft.take(entry, best.batch)

    def _drafts(self, below: float) -> list[Draft]:
        """Of the bystanders that are not so busy that they cannot be better."""
        groups = [group for group in self.bystanders if group.busy(self.now) < below]
        for group in groups:
            if group.index not in self._seen:
                self._seen[group.index] = self.see(group)
        return [self._seen[group.index] for group in groups]

    def _best(self, takers: list[tuple[Draft, list[Entry]]], entry: Entry) -> Offer:
        offers = (Offer(d.added(entry, batch, self.now), d, batch) for d, batch in takers)
        return min(offers, key=lambda offer: (offer.seconds, offer.draft.group.served))


def _takers(drafts: list[Draft], entry: Entry) -> list[tuple[Draft, list[Entry]]]:
    """Those that would take `entry`, and the batches they would have."""
    return [(d, batch) for d in drafts if (batch := d.offer(entry)) is not None]
