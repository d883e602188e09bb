"""The bounded queue: who may come in, and how long the others should wait."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from safelight.errors import InvalidRequest, Overloaded

MIN_WAIT, MAX_WAIT = 1, 60  # seconds; OpenAI's clients ignore or mistreat a longer Retry-After


class Admission:
    """Bounds the samples that are accepted and unfinished."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entering = 0

    @contextmanager
    def entering(self, n: int, etas: Sequence[float | None], backlog: float) -> Iterator[None]:
        """Hold `n` places while a job is committed.

        `etas` are the seconds to the end of every unfinished sample, where known; `backlog` is the
        scheduler's prediction for all of them. Raises `Overloaded` if there is no room now,
        `InvalidRequest` if there never is.
        """
        if n > self._limit:
            raise InvalidRequest(
                f"'n' is {n}; this server queues at most {self._limit} outputs.", param="n"
            )
        missing = len(etas) + self._entering + n - self._limit
        if missing > 0:
            raise Overloaded(
                f"{len(etas) + self._entering} outputs are queued or running; this server takes "
                f"{self._limit} at a time.",
                retry_after_s=_whole(wait_for(missing, etas, backlog)),
            )
        self._entering += n
        try:
            yield
        finally:
            self._entering -= n


def wait_for(places: int, etas: Sequence[float | None], backlog: float) -> float:
    """Predicted seconds until `places` of the unfinished samples have ended.

    A sample of unknown ETA is taken to end with the backlog.
    """
    ends = sorted(max(0.0, backlog if eta is None else eta) for eta in etas)
    if not ends:  # the places are held by jobs that are being committed this moment
        return 0.0
    return ends[min(places, len(ends)) - 1]


def _whole(seconds: float) -> int:
    return min(MAX_WAIT, max(MIN_WAIT, math.ceil(seconds)))
