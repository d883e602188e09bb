"""One worker group as the scheduler sees it: its ranks, its samples, its plans in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from safelight.scheduler.table import Entry, Queue
from safelight.wire.messages import (
    OUT_OF_MEMORY,
    GroupStatus,
    Plan,
    RankCost,
    RankHello,
    RankInfo,
    Report,
    SampleFailure,
)

PLANS_AHEAD = 2
"""The running plan and one more, so that a step never waits for the scheduler."""

PATIENCE = 20.0
"""A plan may take so many times what was predicted, and at least the step timeout."""

DISAGREEMENT_PATIENCE = 15.0
"""Seconds for the others to answer once a rank has reported a failure: those that did not fail may
wait for it in a collective for ever."""

HELLO_PATIENCE = 60.0
"""Seconds, or the step timeout if that is more, for all ranks of a group to say hello once one has.
They start together, but one may read its weights from a cold disk when another has them in memory:
much sooner, and a group that only loads would be ended, again and again."""


@dataclass(eq=False)
class Pending:
    """A plan that was sent and is not answered by every rank."""

    plan: Plan
    op: str
    entries: list[Entry]
    sent: float
    """Or when the plan before it ended, if that was later."""
    seconds: float
    """Predicted."""
    world_size: int
    reports: dict[int, Report] = field(default_factory=dict)
    """Answers by rank."""
    failed: float | None = None
    """When a failure was first reported that all ranks must share."""

    @property
    def shared(self) -> bool:
        """Whether a failure of one rank must be one of all: in a decode, rank 0 may work alone."""
        return self.op in ("encode", "step")

    @property
    def answered(self) -> bool:
        """Whether all ranks have."""
        return len(self.reports) == self.world_size

    def answer(self, report: Report, now: float) -> None:
        self.reports[report.rank] = report
        if self.failed is None and report.failures and self.shared:
            self.failed = now

    def due(self, step_timeout: float) -> float:
        """When a missing answer means a hung rank."""
        due = self.sent + max(step_timeout, PATIENCE * self.seconds)
        if self.failed is not None:
            due = min(due, max(self.sent, self.failed) + DISAGREEMENT_PATIENCE)
        return due

    def complaint(self) -> str:
        """What is wrong with an overdue plan."""
        name = f"plan {self.plan.seq} ({self.op})"
        missing = [rank for rank in range(self.world_size) if rank not in self.reports]
        silence = f"from rank {_listed(missing)}"
        if self.failed is None:
            return f"no answer to {name} {silence}"
        failures = next(report.failures for report in self.reports.values() if report.failures)
        words = self._words(failures[0].sample)
        return f"ranks disagree about {name}: {words}; no answer {silence}"

    def disagreement(self) -> str:
        """Where the ranks that answered differ in what failed; empty if they agree.

        A rank that left a plan earlier than the others has issued fewer collectives than they: from
        then on its messages meet the wrong ones.
        """
        for sample in {failure.sample: None for failure in self._failures()}:
            codes = [_code(report, sample) for report in self.reports.values()]
            if len(set(codes)) > 1:
                name = f"plan {self.plan.seq} ({self.op})"
                return f"ranks disagree about {name}: {self._words(sample)}"
        return ""

    def exhausted(self) -> dict[Entry, SampleFailure]:
        """Its samples for which a rank had too little memory."""
        named = {f.sample: f for f in self._failures() if f.code == OUT_OF_MEMORY}
        return {e: named[e.spec.id] for e in self.entries if e.spec.id in named}

    def _failures(self) -> Iterator[SampleFailure]:
        for report in self.reports.values():
            yield from report.failures

    def _words(self, sample: str) -> str:
        """Who failed `sample`, who did not."""
        codes = {rank: _code(self.reports[rank], sample) for rank in sorted(self.reports)}
        said = [
            f"rank {rank} failed sample {sample} ({code})" for rank, code in codes.items() if code
        ]
        if others := [rank for rank, code in codes.items() if not code]:
            said.append(f"rank {_listed(others)} did not")
        return ", ".join(said)

    def costs(self) -> tuple[RankCost, ...]:
        """What it cost every rank, in order."""
        return tuple(
            RankCost(
                rank=report.rank,
                seconds=report.finished - report.started,
                traffic=report.traffic,
                peak_memory=report.peak_memory,
            )
            for _, report in sorted(self.reports.items())
        )


def _code(report: Report, sample: str) -> str:
    """With which code `sample` failed; empty if it did not."""
    return next((f.code for f in report.failures if f.sample == sample), "")


def _listed(ranks: list[int]) -> str:
    return ", ".join(str(rank) for rank in ranks)


@dataclass(eq=False)
class Group:
    """One worker group. It is made anew when its ranks are."""

    index: int
    world_size: int
    model: str = ""
    hellos: dict[int, RankHello] = field(default_factory=dict)
    """By rank, of those that said hello."""
    waiting: Queue = field(default_factory=Queue)
    """Samples it has begun that are not in the running batch."""
    running: list[Entry] = field(default_factory=list)
    """The batch, most urgent first."""
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
    served: float = 0.0
    """Seconds it has computed."""
    costs: tuple[RankCost, ...] = ()
    """Of its last plan."""
    condemned: str = ""
    """Why it is to be restarted; it is given nothing more."""
    since: float = 0.0
    """When its first rank said hello, or something was last said to be wrong."""

    @property
    def ready(self) -> bool:
        return len(self.hellos) == self.world_size and not self.condemned

    def retire(self, entries: Sequence[Entry]) -> None:
        """Those whose last step is planned leave the batch; their decode is next."""
        ended = [e for e in entries if e.planned > e.steps]
        if ended:
            self.finished.extend(ended)
            self.running = [e for e in self.running if e not in ended]
            self.dirty = True

    def find(self, seq: int) -> Pending | None:
        """The plan in flight with this number."""
        return next((p for p in self.pending if p.plan.seq == seq), None)

    def due(self, step_timeout: float) -> float | None:
        """When something is wrong if nothing comes before; None if nothing is awaited."""
        if self.pending:
            return self.pending[0].due(step_timeout)
        return None if self.ready else self.since + max(step_timeout, HELLO_PATIENCE)

    def complaint(self) -> str:
        """What is wrong when it is overdue."""
        if self.condemned:
            return self.condemned
        if self.pending:
            return self.pending[0].complaint()
        missing = [rank for rank in range(self.world_size) if rank not in self.hellos]
        return f"rank {_listed(missing)} did not say hello, rank {_listed(sorted(self.hellos))} did"

    def charge(self) -> dict[Entry, SampleFailure]:
        """Count the loss of its ranks against whom it may be due to; returns whose fault it was.

        A rank that ran out of memory has named a sample, or a whole batch, of which each is to be
        tried alone. Else it may be due to what was running; not to what waited or was written.
        """
        named = [one for pending in self.pending if (one := pending.exhausted())]
        suspects = [entry for one in named if len(one) > 1 for entry in one]
        for entry in suspects:
            entry.set_apart()
        if not named and self.pending:
            suspects = self.pending[0].entries
        for entry in suspects:
            entry.losses += 1
        return {entry: failure for one in named if len(one) == 1 for entry, failure in one.items()}

    def busy(self, now: float) -> float:
        """Predicted seconds until all it was sent is done.

        A plan that is overdue is expected to take as long again as it is late: of a group that
        hangs, less and less is expected.
        """
        if not self.pending:
            return 0.0
        first = self.pending[0]
        rest = sum(pending.seconds for pending in self.pending) - first.seconds
        return abs(first.sent + first.seconds - now) + rest

    def status(self) -> GroupStatus:
        detail = self.condemned or ("serving" if self.ready else "waiting for its ranks")
        peaks = {cost.rank: cost.peak_memory for cost in self.costs}
        infos = (
            RankInfo(
                rank=rank,
                pid=hello.pid,
                device=hello.device,
                load_seconds=hello.load_seconds,
                peak_memory=peaks.get(rank, hello.peak_memory),
                weights=hello.weights,
            )
            for rank, hello in sorted(self.hellos.items())
        )
        return GroupStatus(
            group=self.index,
            ready=self.ready,
            detail=detail,
            model=self.model,
            ranks=tuple(infos),
        )
