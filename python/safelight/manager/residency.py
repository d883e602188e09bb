"""Which models are loaded: on demand, and the least recently used makes room.

Pure: it is told what happened and says what to do. A model is unloaded by draining: what was
accepted before is finished first, what comes later waits until it is loaded again. So two models
that do not fit together take turns, and no request fails because of it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


class Standing(enum.StrEnum):
    """Where a model stands."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    DRAINING = "draining"
    UNLOADING = "unloading"
    FAILED = "failed"


_PRESENT = (Standing.LOADING, Standing.LOADED, Standing.DRAINING, Standing.UNLOADING)


class Verb(enum.StrEnum):
    LOAD = "load"
    DRAIN = "drain"
    UNLOAD = "unload"


@dataclass
class Model:
    """One model of the configuration."""

    name: str
    nbytes: int
    """Of its weights, on all ranks together."""
    standing: Standing = Standing.UNLOADED
    used: float = 0.0
    """When it was last asked for, in monotonic seconds."""
    wanted: float | None = None
    """Since when somebody waits for it."""
    detail: str = ""
    """Why it failed."""


class Residency:
    """The models of one engine. Every event returns what is to be done, in order."""

    def __init__(
        self,
        models: Iterable[Model],
        *,
        most: int | None = None,
        room: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`most` models may be loaded at once; `room()` says how many more bytes of weights fit
        now, None if nobody knows."""
        self.models: Mapping[str, Model] = {model.name: model for model in models}
        self._most = most
        self._room = room

    def want(self, name: str, now: float) -> list[tuple[Verb, str]]:
        """A request for this model came."""
        model = self.models[name]
        model.used = now
        if model.standing is not Standing.LOADED and model.wanted is None:
            model.wanted = now
        return self._next()

    def unload(self, name: str) -> list[tuple[Verb, str]]:
        """Somebody wants it gone. One that is not there stays wanted: somebody waits for it."""
        model = self.models[name]
        if model.standing not in (Standing.LOADED, Standing.LOADING):
            return []
        model.wanted = None
        return [self._drain(model)]

    def drained(self, name: str) -> list[tuple[Verb, str]]:
        """It holds nothing any more."""
        model = self.models[name]
        if model.standing is not Standing.DRAINING:
            return []
        model.standing = Standing.UNLOADING
        return [(Verb.UNLOAD, name)]

    def loaded(self, name: str) -> list[tuple[Verb, str]]:
        """It serves."""
        model = self.models[name]
        if model.standing in (Standing.LOADING, Standing.UNLOADED, Standing.FAILED):
            model.standing, model.wanted, model.detail = Standing.LOADED, None, ""
        return self._next()

    def gone(self, name: str) -> list[tuple[Verb, str]]:
        """Its ranks have ended."""
        model = self.models[name]
        if model.standing is not Standing.FAILED:
            model.standing = Standing.UNLOADED
        return self._next()

    def failed(self, name: str, detail: str) -> list[tuple[Verb, str]]:
        """It could not be loaded; it is tried again when it is next asked for."""
        model = self.models[name]
        model.standing, model.wanted, model.detail = Standing.FAILED, None, detail
        return self._next()

    def draining(self) -> list[str]:
        """Models that the scheduler must be told of again when it has forgotten."""
        return [m.name for m in self.models.values() if m.standing is Standing.DRAINING]

    # -------------------------------------------------------------------------------- deciding

    def _next(self) -> list[tuple[Verb, str]]:
        """Load who waits longest, if there is room; else make some."""
        waiting = [m for m in self.models.values() if m.wanted is not None]
        for model in sorted(waiting, key=lambda m: m.wanted or 0.0):
            if model.standing in _PRESENT:
                continue  # it comes, or must go before it can come back
            if self._fits(model):
                model.standing = Standing.LOADING
                return [(Verb.LOAD, model.name), *self._next()]
            if any(
                m.standing in (Standing.DRAINING, Standing.UNLOADING) for m in self.models.values()
            ):
                return []  # room is being made
            resident = [m for m in self.models.values() if m.standing is Standing.LOADED]
            if not resident:
                if self._present() == 0:  # it will never fit better than now: let the ranks say it
                    model.standing = Standing.LOADING
                    return [(Verb.LOAD, model.name)]
                return []
            return [self._drain(min(resident, key=lambda m: m.used))]
        return []

    def _drain(self, model: Model) -> tuple[Verb, str]:
        model.standing = Standing.DRAINING
        return Verb.DRAIN, model.name

    def _present(self) -> int:
        return sum(m.standing in _PRESENT for m in self.models.values())

    def _fits(self, model: Model) -> bool:
        if self._most is not None and self._present() >= self._most:
            return False
        room = self._room()
        if room is None:
            return True
        coming = sum(m.nbytes for m in self.models.values() if m.standing is Standing.LOADING)
        return model.nbytes + coming <= room
