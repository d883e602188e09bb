"""A simulated world for the scheduler core: ranks that take predicted time, a clock that jumps.

Every rank of a group works through the plans it is sent, in order, by itself: with `delay` they
answer at different times. A supervisor ends groups that are said to hang and starts them again.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from safelight.config import SchedulingConfig
from safelight.request import Delivery, SampleSpec, Sampling
from safelight.scheduler.core import Command, Core, ToGroup, ToManager, ToSupervisor
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


@dataclass(eq=False)
class Rank:
    """One process that executes plans."""

    group: int
    rank: int
    held: set[str] = field(default_factory=set)
    units: Counter[str] = field(default_factory=Counter)
    """Units executed by sample."""
    plans: deque[m.Plan] = field(default_factory=deque)
    busy: bool = False
    alive: bool = True


@dataclass
class World:
    """A core, one or more simulated groups, and a record of everything that happened."""

    core: Core
    world_size: int = 1
    now: float = 0.0
    fail: set[tuple[str, int]] = field(default_factory=set)
    """(sample, unit) that shall fail on all ranks; unit 0 is the encode."""
    fail_alone: set[tuple[str, int, int]] = field(default_factory=set)
    """(sample, unit, rank) that shall fail on this rank."""
    exhaust: set[tuple[str, int, int]] = field(default_factory=set)
    """(sample, unit, rank) for which this rank has too little memory, and ends. It blames all that
    share the plan."""
    hang: set[tuple[int, int]] = field(default_factory=set)
    """(group, rank) that answers nothing, as long as it lives."""
    unfit: set[tuple[str, int]] = field(default_factory=set)
    """(digest, rank) of adapters that this rank cannot load."""
    delay: Callable[[], float] = lambda: 0.0
    """Seconds a rank takes longer than predicted."""
    restart: float = 1.0
    """Seconds until a group that was said to hang is back."""
    log: list[m.ToRank] = field(default_factory=list)
    """Plans as they are begun."""
    told: list[m.FromScheduler] = field(default_factory=list)
    hung: list[m.Hung] = field(default_factory=list)
    ended: dict[str, str] = field(default_factory=dict)
    units: Counter[str] = field(default_factory=Counter)
    """Units executed by sample."""
    models: dict[int, str] = field(default_factory=dict)
    """What the groups have loaded, where there are several models."""
    write: bool = True
    """Whether the output manager answers at once."""
    counted: dict[str, int] = field(default_factory=dict)
    """Steps by sample, where the ranks count others than were asked for."""

    def __post_init__(self) -> None:
        self.not_held: list[str] = []
        self.logs: dict[int, list[m.ToRank]] = defaultdict(list)
        """Plans as they are begun, by group."""
        self.served: Counter[int] = Counter()
        """Seconds of work by group."""
        self.ranks: dict[int, list[Rank]] = defaultdict(list)
        """Those that live, by group."""
        self._claims: dict[int, set[str]] = defaultdict(set)
        """Samples the group was given and was not told to forget."""
        self._condemned: set[int] = set()
        self._ending: set[int] = set()
        self._events: list[tuple[float, int, object]] = []
        self._count = itertools.count()
        self._tokens: dict[str, int] = {}

    @classmethod
    def create(cls, world_size: int = 1, groups: int = 1, **config: object) -> World:
        core = Core(SchedulingConfig(**config), STEP_TIMEOUT)  # type: ignore[arg-type]
        world = cls(core, world_size)
        for group in range(groups):
            world.hello(group)
        return world

    @property
    def held(self) -> dict[int, set[str]]:
        """Samples that rank 0 of each group holds."""
        return {group: ranks[0].held if ranks else set() for group, ranks in self.ranks.items()}

    # ------------------------------------------------------------------------- what happens to it

    def hello(self, group: int = 0) -> None:
        """All ranks of the group are there, and hold nothing."""
        self._end_ranks(group)
        self._condemned.discard(group)
        self._ending.discard(group)
        for rank in range(self.world_size):
            self.join(group, rank)

    def join(self, group: int, rank: int) -> None:
        """One rank of a group that is being started is there."""
        self.ranks[group].append(Rank(group, rank))
        self.send(
            m.RankHello(
                group=group,
                rank=rank,
                world_size=self.world_size,
                pid=1 + rank,
                load_seconds=0.5,
                peak_memory=1000,
                weights={"transformer": 100 + rank},
                device=f"cpu:{rank}",
                model=self.models.get(group, ""),
            )
        )

    def lose(self, group: int = 0) -> None:
        """The group's ranks die with what they hold, and are back at once."""
        self.down(group)
        self.hello(group)

    def down(self, group: int = 0) -> None:
        """The group's ranks die with what they hold."""
        self._end_ranks(group)
        self.hang = {one for one in self.hang if one[0] != group}
        self._apply(self.core.lost(group, self.now))

    def _end_ranks(self, group: int) -> None:
        for rank in self.ranks[group]:
            rank.alive = False
        self.ranks[group] = []
        self._claims[group].clear()

    def submit(self, *specs: SampleSpec) -> None:
        self._tokens.update({s.id: s.tokens for s in specs})
        self.send(m.Submit(samples=specs))

    def cancel(self, *names: str) -> None:
        self.send(m.Cancel(samples=names))

    def at(self, delay: float, message: m.ToScheduler | Callable[[], None]) -> None:
        """Send `message`, or call it, `delay` seconds from now."""
        if isinstance(message, m.Submit):
            self._tokens.update({s.id: s.tokens for s in message.samples})
        self._push(delay, message)

    def _push(self, delay: float, event: object) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._count), event))

    def send(self, message: m.ToScheduler | m.FromRank) -> None:
        self._apply(self.core.handle(message, self.now))

    # ----------------------------------------------------------------------- what it is told to do

    def _apply(self, commands: list[Command]) -> None:
        written: list[str] = []
        for command in commands:
            if isinstance(command, ToGroup):
                self._give(command.group, command.message)
            elif isinstance(command, ToManager):
                self._hear(command.message, written)
            elif isinstance(command, ToSupervisor):
                self._supervise(command.message)
        if written and self.write:
            self.send(m.Written(samples=tuple(written)))

    def _give(self, group: int, plan: m.ToRank) -> None:
        """A plan for all ranks of a group. Nobody else may hold what it names."""
        assert not isinstance(plan, m.Shutdown)
        ranks, names = self.ranks[group], self.names(plan)
        assert len(ranks) == self.world_size, f"group {group} is not ready"
        assert group not in self._condemned, f"group {group} is about to be ended"
        assert len(set(names)) == len(names), f"twice in one plan: {names}"
        self._claims[group] -= set(plan.release)
        self._claims[group] |= set(names)
        for other, claims in self._claims.items():
            assert other == group or claims.isdisjoint(names), f"in two groups: {names}"
        for rank in ranks:
            rank.plans.append(plan)
            self._start(rank)

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

    def _supervise(self, message: m.ToSupervisor) -> None:
        """A group that hangs is ended soon, and comes back."""
        assert isinstance(message, m.Hung)
        self.hung.append(message)
        group = int(message.process.removeprefix("workers-"))
        self._condemned.add(group)
        self._end_soon(group)

    def _end_soon(self, group: int) -> None:
        if group not in self._ending:
            self._ending.add(group)
            self.at(0.01, lambda: self.down(group))
            self.at(0.01 + self.restart, lambda: self.hello(group))

    # ---------------------------------------------------------------------------- what ranks do

    def _start(self, rank: Rank) -> None:
        if not rank.alive or rank.busy or not rank.plans or (rank.group, rank.rank) in self.hang:
            return
        plan = rank.plans.popleft()
        rank.busy = True
        duration = self._duration(plan)
        if rank.rank == 0:
            self.log.append(plan)
            self.logs[rank.group].append(plan)
            self.served[rank.group] += duration
        self._push(duration + self.delay(), (rank, plan, self.now))

    def _duration(self, plan: m.Plan) -> float:
        names = self.names(plan)
        if not names:
            return 1e-4
        return seconds(type(plan).__name__.lower(), self._tokens[names[0]], len(names))

    @staticmethod
    def names(plan: m.ToRank) -> tuple[str, ...]:
        if isinstance(plan, m.Encode):
            return tuple(s.id for s in plan.samples)
        return plan.samples if isinstance(plan, m.Step | m.Decode) else ()

    def _answer(self, rank: Rank, plan: m.Plan, started: float) -> None:
        if not rank.alive or (rank.group, rank.rank) in self.hang:
            return
        rank.held -= set(plan.release)
        failures = self._execute(rank, plan)
        rank.busy = False
        encoded = self.names(plan) if isinstance(plan, m.Encode) else ()
        self.send(
            m.Report(
                group=rank.group,
                rank=rank.rank,
                seq=plan.seq,
                started=started,
                finished=self.now,
                failures=failures,
                steps={name: self.counted[name] for name in encoded if name in self.counted},
                traffic={"ulysses.all_to_all": 10 + rank.rank},
                peak_memory=2000 + rank.rank,
                layers={"transformer": 10} if isinstance(plan, m.Adapt) and plan.load else {},
            )
        )
        if any(failure.code == "out_of_memory" for failure in failures):
            for one in self.ranks[rank.group]:  # the others wait for it in a collective
                one.alive = False
            self._end_soon(rank.group)
        self._start(rank)

    def _execute(self, rank: Rank, plan: m.Plan) -> tuple[m.SampleFailure, ...]:
        if isinstance(plan, m.Adapt):
            return tuple(
                m.SampleFailure(sample=one.digest, code="unfit", message=f"{one.name} {rank.rank}")
                for one in plan.load
                if (one.digest, rank.rank) in self.unfit
            )
        failures = []
        if any((name, rank.units[name], rank.rank) in self.exhaust for name in self.names(plan)):
            text = f"no memory on rank {rank.rank}"
            return tuple(
                m.SampleFailure(sample=name, code="out_of_memory", message=text)
                for name in self.names(plan)
            )
        for name in self.names(plan):
            if isinstance(plan, m.Encode):
                rank.held.add(name)
                rank.units[name] = 0
            if name not in rank.held:  # it failed in the plan before, or the core is wrong
                self.not_held.append(name)
                failures.append(m.SampleFailure(sample=name, code="not_held", message=""))
            elif self._fails(name, rank):
                rank.held.discard(name)
                failures.append(m.SampleFailure(sample=name, code="x", message="as told"))
            else:
                rank.units[name] += 1
                self.units[name] += rank.rank == 0
        return tuple(failures)

    def _fails(self, name: str, rank: Rank) -> bool:
        unit = rank.units[name]
        return (name, unit) in self.fail or (name, unit, rank.rank) in self.fail_alone

    # ------------------------------------------------------------------------------ how time goes

    def _next(self) -> float:
        """When something happens next; infinite if nothing will."""
        event = self._events[0][0] if self._events else float("inf")
        deadline = self.core.deadline()
        return event if deadline is None else min(event, max(deadline, self.now))

    def turn(self) -> bool:
        """The next thing happens; False when nothing is left."""
        self.now, before = self._next(), self.now
        if self.now == float("inf"):
            self.now = before
            return False
        if not self._events or self.now < self._events[0][0]:
            self._apply(self.core.tick(self.now))
            return True
        _, _, event = heapq.heappop(self._events)
        if isinstance(event, tuple):
            self._answer(*event)
        elif callable(event):
            event()
        else:
            self.send(event)  # type: ignore[arg-type]
        return True

    def run(self, until: float = float("inf"), turns: int = 1_000_000) -> None:
        """Let the world go on until nothing is left, or until then."""
        for _ in range(turns):
            if self._next() > until or not self.turn():
                return
        raise AssertionError("the world does not come to rest")

    def run_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            assert self.turn(), "nothing is left to happen"

    @property
    def steps(self) -> list[m.Step]:
        return [plan for plan in self.log if isinstance(plan, m.Step)]


def groups_told(world: World) -> list[tuple[bool, str]]:
    return [(t.ready, t.detail) for t in world.told if isinstance(t, m.GroupStatus)]


def report(world: World, rank: int, seq: int, **failed: str) -> None:
    failures = tuple(
        m.SampleFailure(sample=f"{name}.0", code=code, message=f"on rank {rank}")
        for name, code in failed.items()
    )
    world.send(m.Report(group=0, rank=rank, seq=seq, started=0.0, finished=0.1, failures=failures))


def hand_driven(world_size: int = 2) -> tuple[World, int]:
    """A world whose ranks answer only by hand, and the number of the encode of `a.0`, `b.0`."""
    world = World.create(world_size=world_size)
    world.hang |= {(0, rank) for rank in range(world_size)}
    world.submit(spec("a.0"), spec("b.0"))
    return world, world.core.groups[0].pending[0].plan.seq
