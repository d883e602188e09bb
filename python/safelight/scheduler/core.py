"""The scheduler without I/O: `handle(message, now)` returns what to send.

It owns no socket, no clock and no thread, so every policy is tested without a process. A tick reads
top-down: take the message, answer finished plans, then keep every worker group two plans deep.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from safelight.config import SchedulingConfig
from safelight.request import Event, SampleSpec
from safelight.scheduler import forecast
from safelight.scheduler.batch import PLANS_AHEAD, Batcher, Group, Pending
from safelight.scheduler.cost import CostModel
from safelight.scheduler.table import Entry
from safelight.wire import messages as m

MAX_LOSSES = 3
"""A sample during whose plans the ranks died so often is failed: it may be what kills them."""

MAX_REDELIVERIES = 5
"""Frames that were lost so often will be lost again."""

PATIENCE = 20.0
"""A plan may take so many times what was predicted, and at least the step timeout."""


@dataclass(frozen=True)
class ToManager:
    message: m.FromScheduler


@dataclass(frozen=True)
class ToGroup:
    """Send `message` to every rank of a group, in this order."""

    group: int
    world_size: int
    message: m.ToRank


@dataclass(frozen=True)
class ToSupervisor:
    message: m.ToSupervisor


Command = ToManager | ToGroup | ToSupervisor


class Core:
    """All samples and worker groups. Not thread-safe; one caller."""

    def __init__(self, config: SchedulingConfig, step_timeout: float, first_seq: int = 0) -> None:
        """`first_seq` must be greater than what an earlier core of these ranks can have used."""
        self.config = config
        self.step_timeout = step_timeout
        self.cost = CostModel()
        self.entries: dict[str, Entry] = {}
        self.groups: dict[int, Group] = {}
        self._batcher = Batcher(config, self.cost)
        self._serial = 0
        self._seq = first_seq
        self._out: list[Command] = []
        self._handlers: dict[type, Callable[..., None]] = {
            m.Attach: self._attach,
            m.Submit: self._submit,
            m.Cancel: self._cancel,
            m.Written: self._written,
            m.Redeliver: self._redeliver,
            m.RankHello: self._hello,
            m.Report: self._report,
        }

    def handle(self, message: m.ToScheduler | m.FromRank, now: float) -> list[Command]:
        """React to one message at time `now` (monotonic seconds)."""
        self._handlers[type(message)](message, now)
        return self._finish(now)

    def tick(self, now: float) -> list[Command]:
        """React to the passing of time alone: plans that are overdue."""
        for group in self.groups.values():
            if group.pending and now >= self._due(group.pending[0]):
                self._hung(group, group.pending[0], now)
        return self._finish(now)

    def deadline(self) -> float | None:
        """When `tick` must be called if nothing comes before; None if nothing is running."""
        return min(
            (self._due(g.pending[0]) for g in self.groups.values() if g.pending), default=None
        )

    def _due(self, pending: Pending) -> float:
        """When an unanswered plan means a hung rank."""
        predicted = 0.0
        if pending.entries:
            tokens = pending.entries[0].spec.tokens
            predicted = self.cost.predict(pending.op, tokens, len(pending.entries))
        return pending.sent + max(self.step_timeout, PATIENCE * predicted)

    def shutdown(self) -> list[Command]:
        """Tell all ranks to end after what they were sent."""
        return [
            ToGroup(group.index, group.world_size, m.Shutdown()) for group in self.groups.values()
        ]

    def _finish(self, now: float) -> list[Command]:
        for group in self.groups.values():
            self._fill(group, now)
        out, self._out = self._out, []
        return out

    # ------------------------------------------------------------------ from the request manager

    def _attach(self, message: m.Attach, now: float) -> None:
        for group in self.groups.values():
            detail = "serving" if group.ready else "waiting for its ranks"
            self._tell(m.GroupStatus(group=group.index, ready=group.ready, detail=detail))
        self._tell_load()

    def _submit(self, message: m.Submit, now: float) -> None:
        added = [self._add(spec, now) for spec in message.samples if self._is_new(spec)]
        for group in self.groups.values():
            group.dirty = True
        if added:
            groups, fresh = self.groups.values(), self._batcher.fresh
            waiting = (forecast.of_waiting(entry, fresh, groups, self.cost) for entry in added)
            self._tell(m.Progress(samples=tuple(waiting)))
            self._tell_load()

    def _is_new(self, spec: SampleSpec) -> bool:
        known = self.entries.get(spec.id)
        return known is None or known.spec.attempt < spec.attempt

    def _add(self, spec: SampleSpec, now: float) -> Entry:
        if (older := self.entries.get(spec.id)) is not None:
            self._forget(older)
        self._serial += 1
        entry = self.entries[spec.id] = Entry(spec, self._serial, now)
        self._batcher.rank(entry)
        self._batcher.fresh.add(entry)
        return entry

    def _cancel(self, message: m.Cancel, now: float) -> None:
        for name in message.samples:
            if (entry := self.entries.get(name)) is not None and not entry.cancelled:
                entry.cancelled = True
                self._unqueue(entry)
                if not entry.in_flight:
                    self._end_cancelled(entry)

    def _end_cancelled(self, entry: Entry) -> None:
        entry.move(Event.CANCEL)
        self._tell(m.SampleCancelled(sample=entry.spec.id, attempt=entry.spec.attempt))
        self._forget(entry)
        self._tell_load()

    def _written(self, message: m.Written, now: float) -> None:
        for name in message.samples:
            # In whatever state: ranks that were lost meanwhile may have begun it again.
            if (entry := self.entries.get(name)) is not None:
                self._forget(entry)
        self._tell_load()

    def _redeliver(self, message: m.Redeliver, now: float) -> None:
        for name in message.samples:
            entry = self.entries.get(name)
            if entry is None or entry.cancelled or entry.planned < entry.steps + 2:
                continue  # its frames have not been made, so none were lost
            entry.redo = True
            if not entry.in_flight:
                self._decode_again(entry)

    def _decode_again(self, entry: Entry) -> None:
        assert entry.group is not None
        group = self.groups[entry.group]
        entry.redeliveries += 1
        if entry.redeliveries > MAX_REDELIVERIES:
            text = f"Its frames were lost {entry.redeliveries} times before they were written."
            self._fail(entry, m.FRAMES_LOST, text)
            return
        group.writing -= 1
        entry.rewrite()
        group.finished.append(entry)

    # ------------------------------------------------------------------------------ from the ranks

    def _hello(self, message: m.RankHello, now: float) -> None:
        group = self.groups.get(message.group)
        if group is None or message.rank in group.pids:
            if group is not None:
                # The same process says hello again when a new scheduler was announced to it.
                self._lose(group, crashed=group.pids[message.rank] != message.pid)
            group = self.groups[message.group] = Group(message.group, message.world_size)
        group.pids[message.rank] = message.pid
        for timing in message.timings if message.rank == 0 else ():
            self.cost.observe(timing.op, timing.tokens, timing.batch, timing.seconds)
        if group.ready:
            self._tell(m.GroupStatus(group=group.index, ready=True, detail="serving"))
            self._tell_load()

    def lost(self, index: int, now: float) -> list[Command]:
        """The ranks of group `index` are gone; what they held starts again."""
        if (group := self.groups.pop(index, None)) is not None:
            self._lose(group, crashed=True)
        return self._finish(now)

    def _lose(self, group: Group, *, crashed: bool) -> None:
        # Only what was running can have ended the ranks; what waited or was written cannot.
        for entry in group.pending[0].entries if crashed and group.pending else ():
            entry.losses += 1
        for other in self.groups.values():
            other.dirty = True
        self._tell(m.GroupStatus(group=group.index, ready=False, detail="its ranks were lost"))
        for entry in [e for e in self.entries.values() if e.group == group.index]:
            entry.restart()
            if entry.cancelled:
                self._end_cancelled(entry)
            elif entry.losses >= MAX_LOSSES:
                text = f"The ranks that ran it were lost {entry.losses} times."
                self._fail(entry, "ranks_lost", text)
            else:
                self._batcher.rank(entry)
                self._batcher.fresh.add(entry)

    def _hung(self, group: Group, pending: Pending, now: float) -> None:
        ranks = ", ".join(str(rank) for rank in sorted(pending.missing))
        text = f"no answer to plan {pending.plan.seq} ({pending.op}) from rank {ranks}"
        self._out.append(
            ToSupervisor(m.Hung(process=f"workers-{group.index}", detail=text)),
        )
        pending.sent = now  # say so once per timeout

    def _report(self, message: m.Report, now: float) -> None:
        group = self.groups.get(message.group)
        pending = group.find(message.seq) if group is not None else None
        if group is None or pending is None:
            return  # an answer to a plan of a lost incarnation
        pending.missing.discard(message.rank)
        if message.rank == 0:
            pending.report = message
        # Ranks answer in order, but not in step with each other: plans end in order.
        while group.pending and not group.pending[0].missing:
            ended = group.pending.popleft()
            if ended.report is not None:
                self._account(group, ended, ended.report)
            if group.pending:  # it begins now; the wait behind the last plan was not its own
                group.pending[0].sent = now

    def _account(self, group: Group, pending: Pending, report: m.Report) -> None:
        """Rank 0 executed a plan: move its samples on."""
        if pending.op == "drop":
            return
        failures = {failure.sample: failure for failure in report.failures}
        moved = []
        for entry in pending.entries:
            failure = failures.get(entry.spec.id)
            if self.entries.get(entry.spec.id) is not entry:
                continue  # it ended while the plan ran
            if failure is not None:
                self._fail(entry, failure.code, failure.message)
                continue
            entry.report()
            group.writing += entry.delivered
            if entry.cancelled:
                if not entry.in_flight:
                    self._end_cancelled(entry)
            elif entry.redo and entry.delivered:
                self._decode_again(entry)
            else:
                moved.append(entry)
        if not failures and pending.entries:
            tokens = pending.entries[0].spec.tokens
            seconds = report.finished - report.started
            self.cost.observe(pending.op, tokens, len(pending.entries), seconds)
        self._tell_done(group, pending, report, moved)

    def _tell_done(
        self, group: Group, pending: Pending, report: m.Report, moved: list[Entry]
    ) -> None:
        if moved:
            self._tell(m.Progress(samples=forecast.of_running(moved, self.cost)))
        self._tell(
            m.PlanDone(
                group=group.index,
                op=pending.op,
                samples=tuple(e.spec.id for e in pending.entries),
                started=report.started,
                finished=report.finished,
            )
        )

    # ------------------------------------------------------------------------------------ planning

    def _fill(self, group: Group, now: float) -> None:
        """Keep the group `PLANS_AHEAD` plans deep."""
        while group.ready and len(group.pending) < PLANS_AHEAD:
            entries = self._batcher.choose(group)
            if not entries:
                break
            self._send_plan(group, entries, now)
        if group.ready and group.release and not group.pending:
            self._send(group, m.Drop(seq=self._next_seq(), release=()), "drop", [], now)

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _send_plan(self, group: Group, entries: list[Entry], now: float) -> None:
        op, seq = entries[0].next_op, self._next_seq()
        names = tuple(e.spec.id for e in entries)
        plan: m.Plan
        if op == "encode":
            plan = m.Encode(seq=seq, release=(), samples=tuple(e.spec for e in entries))
        elif op == "step":
            plan = m.Step(seq=seq, release=(), samples=names)
        else:
            plan = m.Decode(seq=seq, release=(), samples=names)
        seconds = self.cost.predict(op, entries[0].spec.tokens)
        for entry in entries:
            entry.plan()
            entry.work = max(0.0, entry.work - seconds)
        self._send(group, plan, op, list(entries), now)
        if op == "step":
            self._retire_finished(group, entries)

    def _retire_finished(self, group: Group, entries: list[Entry]) -> None:
        """Those whose last step is planned leave the batch; their decode is next."""
        ended = [e for e in entries if e.planned > e.steps]
        if ended:
            group.finished.extend(ended)
            group.running = [e for e in group.running if e not in ended]
            group.dirty = True

    def _send(self, group: Group, plan: m.Plan, op: str, entries: list[Entry], now: float) -> None:
        if group.release:
            plan = _with_release(plan, tuple(group.release))
            group.release = []
        group.pending.append(Pending(plan, op, entries, now, set(range(group.world_size))))
        self._out.append(ToGroup(group.index, group.world_size, plan))

    # ----------------------------------------------------------------------------------- endings

    def _fail(self, entry: Entry, code: str, message: str) -> None:
        entry.move(Event.FAIL)
        self._tell(
            m.SampleFailed(
                sample=entry.spec.id, attempt=entry.spec.attempt, code=code, message=message
            )
        )
        self._forget(entry)
        self._tell_load()

    def _unqueue(self, entry: Entry) -> None:
        """Take it out of every queue and batch, so that no further plan contains it."""
        group = self.groups.get(entry.group) if entry.group is not None else None
        queue = self._batcher.fresh if group is None else group.waiting
        if entry in queue:
            queue.remove(entry)
        if group is not None:
            group.running = [e for e in group.running if e is not entry]
            group.finished = [e for e in group.finished if e is not entry]
            group.dirty = True

    def _forget(self, entry: Entry) -> None:
        """It is over; the ranks may drop what they hold of it."""
        self._unqueue(entry)
        self.entries.pop(entry.spec.id, None)
        group = self.groups.get(entry.group) if entry.group is not None else None
        if group is not None:
            group.held -= 1
            group.writing -= entry.delivered
            group.release.append(entry.spec.id)

    # ----------------------------------------------------------------------------------- telling

    def _tell(self, message: m.FromScheduler) -> None:
        self._out.append(ToManager(message))

    def _tell_load(self) -> None:
        self._tell(forecast.load(self.entries.values(), self.groups.values(), self.cost))


def _with_release(plan: m.Plan, release: tuple[str, ...]) -> m.Plan:
    return msgspec.structs.replace(plan, release=release)
