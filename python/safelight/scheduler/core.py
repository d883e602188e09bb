"""The scheduler without I/O: `handle(message, now)` returns what to send.

It owns no socket, no clock and no thread, so every policy is tested without a process. A tick reads
top-down: take the message, answer finished plans, then keep every worker group `PLANS_AHEAD` plans
deep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from safelight.config import SchedulingConfig
from safelight.request import Adapter, Event, SampleSpec
from safelight.scheduler import forecast
from safelight.scheduler.adapters import Trials
from safelight.scheduler.batch import plan_message
from safelight.scheduler.group import PLANS_AHEAD, Group, Pending
from safelight.scheduler.lane import Lane
from safelight.scheduler.table import Entry, largest
from safelight.wire import messages as m

MAX_LOSSES = 3
"""A sample during whose plans the ranks died so often is failed: it may be what kills them."""

MAX_REDELIVERIES = 5
"""Frames that were lost so often will be lost again."""


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
        self.entries: dict[str, Entry] = {}
        self.groups: dict[int, Group] = {}
        self.lanes: dict[str, Lane] = {}
        self._serial = 0
        self._seq = first_seq
        self._out: list[Command] = []
        self._trials = Trials()
        self._handlers: dict[type, Callable[..., None]] = {
            m.Attach: self._attach,
            m.Submit: self._submit,
            m.Cancel: self._cancel,
            m.Written: self._written,
            m.Redeliver: self._redeliver,
            m.Drain: self._drain,
            m.FlushCaches: self._flush,
            m.LoadAdapters: self._load_adapters,
            m.ForgetAdapters: self._forget_adapters,
            m.RankHello: self._hello,
            m.Report: self._report,
        }

    def handle(self, message: m.ToScheduler | m.FromRank, now: float) -> list[Command]:
        """React to one message at time `now` (monotonic seconds)."""
        self._handlers[type(message)](message, now)
        return self._finish(now)

    def tick(self, now: float) -> list[Command]:
        """React to the passing of time alone: plans, and ranks, that are overdue."""
        for group in self.groups.values():
            due = group.due(self.step_timeout)
            if due is not None and now >= due:
                self._condemn(group, group.complaint(), now)
        return self._finish(now)

    def deadline(self) -> float | None:
        """When `tick` must be called if nothing comes before; None if nothing is awaited."""
        dues = (group.due(self.step_timeout) for group in self.groups.values())
        return min((due for due in dues if due is not None), default=None)

    def shutdown(self) -> list[Command]:
        """Tell all ranks to end after what they were sent."""
        return [
            ToGroup(group.index, group.world_size, m.Shutdown()) for group in self.groups.values()
        ]

    def _finish(self, now: float) -> list[Command]:
        """Keep every group `PLANS_AHEAD` plans deep."""
        for lane in self.lanes.values():
            groups = lane.groups(self.groups.values())
            asking = [g for g in groups if len(g.pending) < PLANS_AHEAD and g.ready]
            while asking and (plans := lane.batcher.choose(asking, groups, now)):
                for group, entries in plans:
                    self._send_plan(lane, group, entries, now)
                asking = [g for g in asking if len(g.pending) < PLANS_AHEAD]
        for group in self.groups.values():
            if group.release and not group.pending:
                self._send(group, "drop", [], 0.0, now)
        out, self._out = self._out, []
        return out

    # ------------------------------------------------------------------ from the request manager

    def _attach(self, message: m.Attach, now: float) -> None:
        for lane in self.lanes.values():  # a new manager knows nothing of what an old one wanted
            lane.resume()
        self._disturb()
        for group in self.groups.values():
            self._tell(group.status())
        self._tell_load()

    def _submit(self, message: m.Submit, now: float) -> None:
        added = [self._add(spec, now) for spec in message.samples if self._is_new(spec)]
        self._disturb()
        if added:
            self._tell(m.Progress(samples=tuple(self._waiting(entry) for entry in added)))
            self._tell_load()

    def _waiting(self, entry: Entry) -> m.SampleProgress:
        lane = self._lane(entry)
        return forecast.of_waiting(entry, lane, lane.groups(self.groups.values()))

    def lane(self, model: str) -> Lane:
        """The samples and groups of a model."""
        if model not in self.lanes:
            self.lanes[model] = Lane.of(model, self.config)
        return self.lanes[model]

    def _lane(self, entry: Entry) -> Lane:
        return self.lane(entry.spec.model)

    def _is_new(self, spec: SampleSpec) -> bool:
        known = self.entries.get(spec.id)
        return known is None or known.spec.attempt < spec.attempt

    def _add(self, spec: SampleSpec, now: float) -> Entry:
        if (older := self.entries.get(spec.id)) is not None:
            self._forget(older)
        self._serial += 1
        entry = self.entries[spec.id] = Entry(spec, self._serial, now)
        self._lane(entry).add(entry)
        return entry

    def _drain(self, message: m.Drain, now: float) -> None:
        lane = self.lane(message.model)
        lane.drain()
        self._tell_drained(lane)

    def _flush(self, message: m.FlushCaches, now: float) -> None:
        for group in self.groups.values():
            # Behind what it was sent, however deep that is; once is enough.
            if group.ready and not (group.pending and group.pending[-1].op == "flush"):
                self._send(group, "flush", [], 0.0, now)

    def _load_adapters(self, message: m.LoadAdapters, now: float) -> None:
        groups = self._serving(message.model)
        trial = self._trials.begin(message, groups, self._seq + 1)
        for group in groups:
            self._adapt(group, now, load=message.adapters)
        if trial.answer is not None:  # nobody is there to try: they are loaded when first used
            self._tell(trial.answer)

    def _forget_adapters(self, message: m.ForgetAdapters, now: float) -> None:
        for group in self._serving(message.model):
            self._adapt(group, now, drop=message.digests)

    def _serving(self, model: str) -> list[Group]:
        return [group for group in self.lane(model).groups(self.groups.values()) if group.ready]

    def _tell_drained(self, lane: Lane) -> None:
        if lane.drained:
            self._tell(m.Drained(model=lane.model))

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
        if group is None or message.rank in group.hellos:
            if group is not None:
                # The same process says hello again when a new scheduler was announced to it.
                self._lose(group, crashed=group.hellos[message.rank].pid != message.pid)
            group = self.groups[message.group] = Group(
                message.group, message.world_size, message.model, since=now
            )
        group.hellos[message.rank] = message
        lane = self.lane(message.model)
        for timing in message.timings if message.rank == 0 else ():
            lane.cost.observe(timing.op, timing.tokens, timing.batch, timing.seconds)
        if group.ready:
            if lane.drained:
                lane.resume()
            self._disturb()
            self._tell(group.status())
            self._tell_load()

    def lost(self, index: int, now: float) -> list[Command]:
        """The ranks of group `index` are gone; what they held starts again."""
        if (group := self.groups.pop(index, None)) is not None:
            self._lose(group, crashed=True)
        return self._finish(now)

    def _lose(self, group: Group, *, crashed: bool) -> None:
        guilty = group.charge() if crashed else {}
        for answer in self._trials.lost(group):
            self._tell(answer)
        self._disturb()
        gone = m.GroupStatus(
            group=group.index, ready=False, detail="its ranks were lost", model=group.model
        )
        self._tell(gone)
        for entry in [e for e in self.entries.values() if e.group == group.index]:
            entry.restart()
            if entry.cancelled:
                self._end_cancelled(entry)
            elif (failure := guilty.get(entry)) is not None:
                self._fail(entry, failure.code, failure.message)
            elif entry.losses >= MAX_LOSSES:
                text = f"The ranks that ran it were lost {entry.losses} times."
                self._fail(entry, "ranks_lost", text)
            else:
                batcher = self._lane(entry).batcher
                batcher.rank(entry)
                batcher.fresh.add(entry)

    def _disturb(self) -> None:
        """There may be more, or less, for everybody."""
        for group in self.groups.values():
            group.dirty = True

    def _condemn(self, group: Group, why: str, now: float) -> None:
        """Have the group started again; its samples go elsewhere when it is lost."""
        self._out.append(ToSupervisor(m.Hung(process=f"workers-{group.index}", detail=why)))
        group.since = now  # say so once per timeout
        if group.pending:
            group.pending[0].sent, group.pending[0].failed = now, None
        if not group.condemned:
            group.condemned = why
            self._tell(group.status())
            self._tell_load()

    def _report(self, message: m.Report, now: float) -> None:
        group = self.groups.get(message.group)
        pending = group.find(message.seq) if group is not None else None
        if group is None or pending is None or group.condemned:
            return  # an answer to a plan of a lost incarnation
        pending.answer(message, now)
        # Ranks answer in order, but not in step with each other: plans end in order.
        while group.pending and group.pending[0].answered:
            if group.pending[0].failed is not None and (why := group.pending[0].disagreement()):
                self._condemn(group, why, now)
                return
            self._account(group, group.pending.popleft())
            if group.pending:  # it begins now; the wait behind the last plan was not its own
                group.pending[0].sent = now

    def _account(self, group: Group, pending: Pending) -> None:
        """All ranks executed a plan: move its samples on."""
        report = pending.reports[0]
        group.served += report.finished - report.started
        if (answer := self._trials.executed(pending, group.index)) is not None:
            self._tell(answer)
        if pending.op in ("drop", "flush", "adapt"):
            return
        failures = {failure.sample: failure for failure in report.failures}
        counted = _take_counts(pending.entries, report.steps) if report.steps else []
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
        for entry in counted:
            if entry in moved:
                self._lane(entry).batcher.recount(group, entry)
        if not failures and pending.entries:
            tokens = largest(pending.entries)
            seconds = report.finished - report.started - report.previews - report.adapting
            cost = self.lane(group.model).cost
            cost.observe(pending.op, tokens, len(pending.entries), seconds)
        self._tell_done(group, pending, moved)

    def _tell_done(self, group: Group, pending: Pending, moved: list[Entry]) -> None:
        report, costs = pending.reports[0], pending.costs()
        group.costs = costs
        if moved:
            cost = self.lane(group.model).cost
            self._tell(m.Progress(samples=forecast.of_running(moved, cost)))
        if pending.op == "encode":  # the queue has moved on
            self._tell_places(self.lane(group.model), report.finished)
        self._tell(
            m.PlanDone(
                group=group.index,
                op=pending.op,
                samples=tuple(e.spec.id for e in pending.entries),
                started=report.started,
                finished=report.finished,
                ranks=costs,
            )
        )

    def _tell_places(self, lane: Lane, now: float) -> None:
        """Tell those that are next in line, unless they have just been told: it takes as long as
        all the rest of a tick."""
        if now - lane.told >= forecast.NEWS_S and (near := lane.batcher.fresh.head(forecast.SOON)):
            lane.told = now
            self._tell(m.Progress(samples=tuple(map(self._waiting, near))))

    # ------------------------------------------------------------------------------------ planning

    def _send_plan(self, lane: Lane, group: Group, entries: list[Entry], now: float) -> None:
        op = entries[0].next_op
        seconds = lane.cost.over_batch(op, largest(entries))
        alone = seconds(1)
        for entry in entries:
            entry.plan()
            entry.work = max(0.0, entry.work - alone)
        self._send(group, op, list(entries), seconds(len(entries)), now)
        if op == "step":
            group.retire(entries)

    def _send(
        self, group: Group, op: str, entries: list[Entry], seconds: float, now: float
    ) -> None:
        plan = plan_message(op, self._seq + 1, tuple(group.release), entries)
        self._post(group, Pending(plan, op, entries, now, seconds, group.world_size))

    def _adapt(
        self,
        group: Group,
        now: float,
        load: tuple[Adapter, ...] = (),
        drop: tuple[str, ...] = (),
    ) -> None:
        """Behind what the group was sent, however deep that is."""
        release = tuple(group.release)
        plan = m.Adapt(seq=self._seq + 1, release=release, load=load, drop=drop)
        self._post(group, Pending(plan, "adapt", [], now, 0.0, group.world_size))

    def _post(self, group: Group, pending: Pending) -> None:
        self._seq += 1
        group.release = []
        group.pending.append(pending)
        self._out.append(ToGroup(group.index, group.world_size, pending.plan))

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
        queue = self._lane(entry).batcher.fresh if group is None else group.waiting
        if entry in queue:
            queue.remove(entry)
        if group is not None:
            group.running = [e for e in group.running if e is not entry]
            group.finished = [e for e in group.finished if e is not entry]
            group.dirty = True

    def _forget(self, entry: Entry) -> None:
        """It is over; the ranks may drop what they hold of it."""
        self._unqueue(entry)
        lane = self._lane(entry)
        if self.entries.pop(entry.spec.id, None) is not None:
            lane.discard(entry)
            self._tell_drained(lane)
        group = self.groups.get(entry.group) if entry.group is not None else None
        if group is not None:
            group.held -= 1
            group.writing -= entry.delivered
            group.release.append(entry.spec.id)

    # ----------------------------------------------------------------------------------- telling

    def _tell(self, message: m.FromScheduler) -> None:
        self._out.append(ToManager(message))

    def _tell_load(self) -> None:
        self._tell(forecast.load(self.entries.values(), self.groups.values(), self.lanes.values()))


def _take_counts(entries: list[Entry], steps: Mapping[str, int]) -> list[Entry]:
    """Note how many steps each will take, by its id; those that were thought to take others."""
    counted = [e for e in entries if steps.get(e.spec.id, e.steps) != e.steps]
    for entry in counted:
        entry.steps = steps[entry.spec.id]
    return counted
