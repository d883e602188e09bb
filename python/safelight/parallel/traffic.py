"""Bytes that collectives move, by collective and axis.

What counts is what a rank sends to others, as the algorithms of NCCL and gloo for large tensors do:
``n (P - 1) / P`` for an all-to-all of `n` bytes, ``n (P - 1)`` for an all-gather of `n` bytes a
rank, ``2 n (P - 1) / P`` for an all-reduce (reduce-scatter, then all-gather), `n` for a send.
"""

from __future__ import annotations

from collections import Counter


class Traffic:
    """Counts of one rank since the last `take`. Not thread-safe."""

    def __init__(self) -> None:
        self._sent: Counter[str] = Counter()
        self.collectives = 0
        """Collectives issued since the start: ranks that did the same have the same number."""

    def all_to_all(self, axis: str, nbytes: int, ranks: int) -> None:
        """`nbytes` is the whole input of this rank."""
        self._count("all_to_all", axis, nbytes * (ranks - 1) // ranks)

    def all_gather(self, axis: str, nbytes: int, ranks: int) -> None:
        """`nbytes` is this rank's part."""
        self._count("all_gather", axis, nbytes * (ranks - 1))

    def all_reduce(self, axis: str, nbytes: int, ranks: int) -> None:
        self._count("all_reduce", axis, 2 * nbytes * (ranks - 1) // ranks)

    def send(self, axis: str, nbytes: int) -> None:
        """One exchange with neighbours: counted on every rank alike, though those at an edge have
        one neighbour less and send `nbytes` less."""
        self._count("send", axis, nbytes)

    def _count(self, collective: str, axis: str, sent: int) -> None:
        self._sent[f"{axis}.{collective}"] += sent
        self.collectives += 1

    def take(self) -> dict[str, int]:
        """Bytes sent since the last call, by ``axis.collective``."""
        sent, self._sent = dict(self._sent), Counter()
        return sent
