"""One model as the scheduler sees it: its samples and groups are apart from those of others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from safelight.config import SchedulingConfig
from safelight.scheduler.batch import Batcher
from safelight.scheduler.cost import CostModel
from safelight.scheduler.group import Group
from safelight.scheduler.table import Entry


@dataclass(eq=False)
class Lane:
    """A model. What a forward costs is learned for each."""

    model: str
    batcher: Batcher
    draining: bool = False
    """Whether it is to be unloaded once all that was accepted before is done."""
    later: list[Entry] = field(default_factory=list)
    """What came after that: it waits until the model is loaded again."""
    unfinished: int = 0
    """Samples that it has, without the later ones."""
    told: float = -math.inf
    """When those in line were last told their places; monotonic seconds."""

    @classmethod
    def of(cls, model: str, config: SchedulingConfig) -> Lane:
        return cls(model, Batcher(config, CostModel()))

    @property
    def cost(self) -> CostModel:
        return self.batcher.cost

    @property
    def drained(self) -> bool:
        return self.draining and self.unfinished == 0

    def groups(self, everybody: Iterable[Group]) -> list[Group]:
        """Its own."""
        return [group for group in everybody if group.model == self.model]

    def add(self, entry: Entry) -> None:
        """A new sample."""
        self.batcher.rank(entry)
        if self.draining:
            self.later.append(entry)
        else:
            self.unfinished += 1
            self.batcher.fresh.add(entry)

    def discard(self, entry: Entry) -> None:
        """A sample is over."""
        if entry in self.later:
            self.later.remove(entry)
        else:
            self.unfinished -= 1

    def drain(self) -> None:
        """It is to be unloaded. What has waited since the last time was accepted before this, so it
        is done first, even if the ranks are not there yet."""
        self.resume()
        self.draining = True

    def resume(self) -> None:
        """Its ranks are back: what waited for them is fresh."""
        self.draining = False
        self.unfinished += len(self.later)
        for entry in self.later:
            self.batcher.fresh.add(entry)
        self.later = []
