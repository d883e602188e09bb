"""What the scheduler knows of a sample, and the queue of those that wait.

A sample's work is a line of units: one encode, its denoising steps, one decode. `planned` counts
the units sent to the ranks, `done` those reported back; they differ by at most the plans in flight,
so the next plan can be made before the last one is answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sortedcontainers import SortedKeyList

from safelight.request import Event, SampleSpec, State, advance


@dataclass(slots=True, eq=False)
class Entry:
    """One unfinished sample."""

    spec: SampleSpec
    steps: int = field(init=False)
    batch_key: str = field(init=False)
    """Whose forwards it may share. It must not change while the entry is in a queue."""
    serial: int
    """Order of arrival."""
    arrived: float
    state: State = State.QUEUED
    group: int | None = None
    """The worker group that holds its latents."""
    planned: int = 0
    done: int = 0
    in_flight: int = 0
    """Plans sent and not answered that contain it."""
    work: float = 0.0
    """Predicted seconds left, alone."""
    urgency: float = 0.0
    """Sort key while it waits; see `policy`."""
    cancelled: bool = False
    losses: int = 0
    """How often ranks were lost while they ran it."""
    redeliveries: int = 0
    redo: bool = False
    """Its frames were lost while the decode is in flight: decode again after it."""

    def __post_init__(self) -> None:
        self.steps = self.spec.sampling.num_inference_steps
        self.batch_key = self.spec.batch_key

    @property
    def steps_done(self) -> int:
        return min(max(self.done - 1, 0), self.steps)

    @property
    def delivered(self) -> bool:
        """Whether its frames were handed to the output manager."""
        return self.done > self.steps + 1

    @property
    def next_op(self) -> str:
        """What its next plan would be: `encode`, `step`, `decode`, or `` when all is planned."""
        if self.planned == 0:
            return "encode"
        if self.planned <= self.steps:
            return "step"
        return "decode" if self.planned == self.steps + 1 else ""

    def plan(self) -> None:
        """One more unit was sent to the ranks."""
        if self.planned == 0:
            self.move(Event.START)
        self.planned += 1
        self.in_flight += 1

    def report(self) -> None:
        """The oldest unit in flight was answered."""
        self.in_flight -= 1
        self.done += 1
        if self.done == 1:
            self.move(Event.ENCODED)
        elif self.done <= self.steps:
            self.move(Event.STEP)
        elif self.done == self.steps + 1:
            self.move(Event.LAST_STEP)
        else:
            self.move(Event.DECODED)

    def move(self, event: Event) -> None:
        self.state = advance(self.state, event)

    def rewrite(self) -> None:
        """Back to before its decode: the frames are gone, the latents are there."""
        self.move(Event.REWRITE)
        self.planned = self.done = self.steps + 1
        self.redo = False

    def set_apart(self) -> None:
        """From now on it shares no forward."""
        self.batch_key = f"alone: {self.spec.id}"

    def restart(self) -> None:
        """Back to the beginning: the ranks that held it are gone."""
        if self.state is not State.QUEUED:
            self.move(Event.LOST)
        self.planned = self.done = self.in_flight = 0
        self.redo = False
        self.group = None


def largest(entries: Sequence[Entry]) -> int:
    """Tokens of the largest: where sizes share a forward, the others are padded to it."""
    return max([entry.spec.tokens for entry in entries])  # a list: this is on every step's path


def order(entry: Entry) -> tuple[float, int]:
    """Sort key: the most urgent first, then the first to come."""
    return entry.urgency, entry.serial


@dataclass
class Queue:
    """Waiting samples, most urgent first, overall and by batch key. Operations are O(log n)."""

    _all: SortedKeyList = field(default_factory=lambda: SortedKeyList(key=order))
    _by_key: dict[str, SortedKeyList] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._all)

    def add(self, entry: Entry) -> None:
        """`entry.urgency` must not change while it is in the queue."""
        self._all.add(entry)
        key = entry.batch_key
        if key not in self._by_key:
            self._by_key[key] = SortedKeyList(key=order)
        self._by_key[key].add(entry)

    def remove(self, entry: Entry) -> None:
        self._all.remove(entry)
        key = entry.batch_key
        same = self._by_key[key]
        same.remove(entry)
        if not same:
            del self._by_key[key]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._all)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._all

    def first(self) -> Entry | None:
        return self._all[0] if self._all else None

    def first_of(self, key: str, count: int) -> list[Entry]:
        """The `count` most urgent entries of one batch key."""
        same = self._by_key.get(key)
        return list(same.islice(0, count)) if same else []

    def count_of(self, key: str) -> int:
        """Entries of one batch key."""
        return len(self._by_key.get(key, ()))

    def head(self, count: int) -> list[Entry]:
        return list(self._all.islice(0, count))

    def position(self, entry: Entry) -> int:
        """How many wait before it."""
        return int(self._all.index(entry))
