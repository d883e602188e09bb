"""Adapters that are tried out: on every group of their model, and then told of once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from safelight.scheduler.group import Group, Pending
from safelight.wire.messages import AdaptersLoaded, LoadAdapters


@dataclass(eq=False)
class Trial:
    """What one `LoadAdapters` has come to."""

    ticket: str
    awaited: set[int]
    """Groups that have not answered."""
    error: str | None = None
    """The first."""
    layers: dict[str, int] = field(default_factory=dict)

    @property
    def answer(self) -> AdaptersLoaded | None:
        """None while a group is awaited."""
        if self.awaited:
            return None
        return AdaptersLoaded(ticket=self.ticket, error=self.error, layers=self.layers)


class Trials:
    """All that are under way."""

    def __init__(self) -> None:
        self._plans: dict[int, Trial] = {}
        """By the number of a plan."""

    def begin(self, message: LoadAdapters, groups: Iterable[Group], first_seq: int) -> Trial:
        """One on these groups, whose plans are numbered from `first_seq`."""
        trial = Trial(message.ticket, {group.index for group in groups})
        for offset in range(len(trial.awaited)):
            self._plans[first_seq + offset] = trial
        return trial

    def executed(self, pending: Pending, group: int) -> AdaptersLoaded | None:
        """All ranks of a group have answered a plan; what there is to tell."""
        if (trial := self._plans.pop(pending.plan.seq, None)) is None:
            return None
        reports = [report for _, report in sorted(pending.reports.items())]
        failures = [failure.message for report in reports for failure in report.failures]
        trial.error = trial.error or next(iter(failures), None)
        trial.layers = trial.layers or reports[0].layers
        trial.awaited.discard(group)
        return trial.answer

    def lost(self, group: Group) -> list[AdaptersLoaded]:
        """The ranks of a group are gone; what there is to tell of what they were to try."""
        trials = [self._plans.pop(p.plan.seq, None) for p in group.pending]
        told = []
        for trial in trials:
            if trial is not None:
                trial.error = trial.error or "The ranks that tried it were lost."
                trial.awaited.discard(group.index)
                told.append(trial.answer)
        return [answer for answer in told if answer is not None]
