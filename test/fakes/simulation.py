"""A simulated world for the scheduler core: ranks that take predicted time, a clock that jumps."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from safelight.config import SchedulingConfig
from safelight.request import Delivery, SampleSpec, Sampling
from safelight.scheduler.core import Command, Core, ToGroup, ToManager
from safelight.wire import messages as m

STEP_TIMEOUT = 600.0


def spec(
    name: str, *, steps: int = 4, tokens: int = 80, priority: int = 0, attempt: int = 1
) -> SampleSpec:
    """A sample whose batch key is its size."""
    return SampleSpec(
        id=name,
        attempt=attempt,
        prompt="a red circle",
        sampling=Sampling(
            width=64,
            height=64,
            num_frames=9,
            fps=8,
            num_inference_steps=steps,
            guidance_scale=3.0,
            max_sequence_length=64,
        ),
        priority=priority,
        batch_key=f"key-{tokens}",
        tokens=tokens,
        delivery=Delivery(path="/x", format="mp4", fps=8, compression=0, parameters={}),
    )


def seconds(op: str, tokens: int, batch: int) -> float:
    """What a plan costs in this world: a fixed part, which batching saves, and a part per token."""
    fixed, slope = {"encode": (0.002, 0.0), "step": (0.01, 4e-5), "decode": (0.005, 2e-5)}[op]
    return fixed + slope * tokens * batch


@dataclass
class World:
    """A core, one or more simulated groups, and a record of everything that happened."""

    core: Core
    world_size: int = 1
    now: float = 0.0
    fail: set[tuple[str, int]] = field(default_factory=set)
    """(sample, unit) that shall fail; unit 0 is the encode."""
    log: list[m.ToRank] = field(default_factory=list)
    told: list[m.FromScheduler] = field(default_factory=list)
    ended: dict[str, str] = field(default_factory=dict)
    units: Counter[str] = field(default_factory=Counter)
    """Units executed by sample."""
    write: bool = True
    """Whether the output manager answers at once."""

    def __post_init__(self) -> None:
        self.not_held: list[str] = []
        self._queues: dict[int, list[m.ToRank]] = defaultdict(list)
        self._busy: dict[int, bool] = defaultdict(bool)
        self._events: list[tuple[float, int, object]] = []
        self._count = itertools.count()
        self._tokens: dict[str, int] = {}
        self.held: dict[int, set[str]] = defaultdict(set)

    @classmethod
    def create(cls, world_size: int = 1, groups: int = 1, **config: object) -> World:
        core = Core(SchedulingConfig(**config), STEP_TIMEOUT)  # type: ignore[arg-type]
        world = cls(core, world_size)
        for group in range(groups):
            world.hello(group)
        return world

    def hello(self, group: int = 0) -> None:
        self._queues[group].clear()
        self._busy[group] = False
        self.held[group].clear()
        for rank in range(self.world_size):
            self.send(
                m.RankHello(
                    group=group,
                    rank=rank,
                    world_size=self.world_size,
                    pid=1,
                    load_seconds=0.0,
                    peak_memory=0,
                )
            )

    def submit(self, *specs: SampleSpec) -> None:
        self._tokens.update({s.id: s.tokens for s in specs})
        self.send(m.Submit(samples=specs))

    def cancel(self, *names: str) -> None:
        self.send(m.Cancel(samples=names))

    def lose(self, group: int = 0) -> None:
        """The group's ranks die with what they hold, and are back at once."""
        self._events = [
            e for e in self._events if not (isinstance(e[2], tuple) and e[2][0] == group)
        ]
        heapq.heapify(self._events)
        self._apply(self.core.lost(group, self.now))
        self.hello(group)

    def at(self, delay: float, message: m.ToScheduler | Callable[[], None]) -> None:
        """Send `message`, or call it, `delay` seconds from now."""
        if isinstance(message, m.Submit):
            self._tokens.update({s.id: s.tokens for s in message.samples})
        heapq.heappush(self._events, (self.now + delay, next(self._count), message))

    def send(self, message: m.ToScheduler | m.FromRank) -> None:
        self._apply(self.core.handle(message, self.now))

    def _apply(self, commands: list[Command]) -> None:
        written: list[str] = []
        for command in commands:
            if isinstance(command, ToGroup):
                self._queues[command.group].append(command.message)
                self._start(command.group)
            elif isinstance(command, ToManager):
                self._hear(command.message, written)
        if written and self.write:
            self.send(m.Written(samples=tuple(written)))

    def _hear(self, message: m.FromScheduler, written: list[str]) -> None:
        self.told.append(message)
        if isinstance(message, m.Progress):
            written += [p.sample for p in message.samples if p.state == "writing"]
            for p in message.samples:
                if p.state == "writing" and self.write:
                    self._end(p.sample, "completed")
        elif isinstance(message, m.SampleFailed):
            self._end(message.sample, "failed")
        elif isinstance(message, m.SampleCancelled):
            self._end(message.sample, "cancelled")

    def _end(self, sample: str, how: str) -> None:
        assert sample not in self.ended, f"{sample} ended twice: {self.ended[sample]}, {how}"
        self.ended[sample] = how

    def _start(self, group: int) -> None:
        if self._busy[group] or not self._queues[group]:
            return
        plan = self._queues[group].pop(0)
        self._busy[group] = True
        self.log.append(plan)
        duration = self._duration(plan)
        event = (self.now + duration, next(self._count), (group, plan, self.now))
        heapq.heappush(self._events, event)

    def _duration(self, plan: m.ToRank) -> float:
        names = self.names(plan)
        if not names:
            return 1e-4
        return seconds(type(plan).__name__.lower(), self._tokens[names[0]], len(names))

    @staticmethod
    def names(plan: m.ToRank) -> tuple[str, ...]:
        if isinstance(plan, m.Encode):
            return tuple(s.id for s in plan.samples)
        return plan.samples if isinstance(plan, m.Step | m.Decode) else ()

    def turn(self) -> bool:
        """The next thing happens; False when nothing is left."""
        if not self._events:
            return False
        self.now, _, event = heapq.heappop(self._events)
        if isinstance(event, tuple):
            self._answer(*event)
        elif callable(event):
            event()
        else:
            self.send(event)  # type: ignore[arg-type]
        return True

    def _answer(self, group: int, plan: m.ToRank, started: float) -> None:
        self.held[group] -= set(plan.release)
        names = self.names(plan)
        assert len(set(names)) == len(names), f"twice in one plan: {names}"
        failures = self._execute(group, plan, names)
        self._busy[group] = False
        for rank in range(self.world_size):
            self.send(
                m.Report(
                    group=group,
                    rank=rank,
                    seq=plan.seq,
                    started=started,
                    finished=self.now,
                    failures=failures if rank == 0 else (),
                )
            )
        self._start(group)

    def _execute(
        self, group: int, plan: m.ToRank, names: tuple[str, ...]
    ) -> tuple[m.SampleFailure, ...]:
        failures = []
        for name in names:
            if isinstance(plan, m.Encode):
                self.held[group].add(name)
            if name not in self.held[group]:  # it failed in the plan before, or the core is wrong
                self.not_held.append(name)
                failures.append(m.SampleFailure(sample=name, code="not_held", message=""))
            elif (name, self.units[name]) in self.fail:
                self.held[group].discard(name)
                failures.append(m.SampleFailure(sample=name, code="x", message="as told"))
            else:
                self.units[name] += 1
        return tuple(failures)

    def run(self, until: float = float("inf"), turns: int = 1_000_000) -> None:
        """Let the world go on until nothing is left, or until then."""
        for _ in range(turns):
            if not self._events or self._events[0][0] > until:
                return
            self.turn()
        raise AssertionError("the world does not come to rest")

    def run_until(self, condition: object) -> None:
        while not condition():  # type: ignore[operator]
            assert self.turn(), "nothing is left to happen"

    @property
    def steps(self) -> list[m.Step]:
        return [plan for plan in self.log if isinstance(plan, m.Step)]
