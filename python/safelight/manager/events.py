"""A job as its readers see it, and how they hear of changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec

from safelight.errors import SafelightError
from safelight.request import GenerationRequest
from safelight.store.jobs import Output
from safelight.store.tables import Status


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of a job. Times are Unix seconds."""

    request: GenerationRequest
    status: Status
    progress: int
    """0 to 100: denoising steps done over those of all samples; 100 only when completed."""
    steps_done: int
    steps_total: int
    eta: float | None
    """Predicted seconds until it is completed; None if not known, or over."""
    position: int | None
    """Samples served before its next one; None if not known, or over."""
    outputs: tuple[Output, ...]
    """The finished files so far, in sample order, with absolute paths."""
    error_code: str | None
    error_message: str | None
    started_at: float | None
    completed_at: float | None
    attempt: int

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def created_at(self) -> float:
        return self.request.created_at


class Topic:
    """Tells any number of readers that a job changed.

    A slow reader skips views instead of queueing them: only the newest matters.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._last: JobView | SafelightError | None = None

    def pulse(self) -> None:
        """Something changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    def end(self, last: JobView | SafelightError) -> None:
        """Nothing will change any more. Readers get `last`, or it is raised to them."""
        self._last = last
        self._ended.set()
        self.pulse()

    async def final(self) -> JobView:
        """The last view, once there is one."""
        await self._ended.wait()
        assert self._last is not None
        return self._unless_error(self._last)

    async def pulses(self) -> AsyncIterator[None]:
        """Now, after every change, and once more at the end; raises what it ended with."""
        while self._last is None:
            changed = self._changed
            yield
            await changed.wait()
        self._unless_error(self._last)
        yield

    async def follow(self, view: Callable[[], JobView]) -> AsyncIterator[JobView]:
        """`view()` now and after every change, and at the end the last view."""
        while self._last is None:
            changed = self._changed
            yield view()
            await changed.wait()
        yield self._unless_error(self._last)

    @staticmethod
    def _unless_error(last: JobView | SafelightError) -> JobView:
        if isinstance(last, SafelightError):
            raise last
        return last
