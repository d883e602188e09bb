"""Real rank processes over gloo, kept alive from one test to the next.

They are forked from a server that has imported torch and diffusers, as importing takes ten seconds
a process. Work is a function of an importable module under `test/`, called on every rank as
``function(rank, *arguments)``; results travel by pipe. A pool in which a rank failed or hung is
replaced, so that no test inherits another's broken process group.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

PRELOAD = ["safelight.models.wan.adapter", "safelight.models.registry"]
"""Installed modules only: the fork server does not know where the tests are, and ignores what it
cannot import."""
TIMEOUT = 20.0
"""Seconds a rank waits in a collective: a divergence fails instead of hanging."""


class RankFailed(AssertionError):
    """A rank raised; the message has its traceback."""


class RankPool:
    """`size` ranks. `run` gives their results in the order of ranks."""

    def __init__(self, size: int, timeout: float = TIMEOUT) -> None:
        self.size = size
        self._timeout = timeout
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(
        self, function: Callable[..., Any], *arguments: Any, timeout: float = 120.0
    ) -> list[Any]:
        """Raises `RankFailed` if a rank raised, ended, or took longer than `timeout` seconds."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers: dict[int, tuple[bool, Any]] = {}
        while len(answers) < self.size:
            waiting = [p for i, p in enumerate(self._pipes) if i not in answers]
            ready = wait(waiting, timeout)
            if not ready:
                missing = sorted(set(range(self.size)) - set(answers))
                self.close()
                raise RankFailed(f"ranks {missing} did not answer; others said {answers}")
            for pipe in ready:
                rank = self._pipes.index(pipe)  # type: ignore[arg-type]
                try:
                    answers[rank] = pipe.recv()  # type: ignore[union-attr]
                except EOFError:
                    answers[rank] = (False, "the process ended")
        failed = {rank: text for rank, (fine, text) in answers.items() if not fine}
        if failed:
            self.close()
            raise RankFailed("\n".join(f"rank {r}: {text}" for r, text in sorted(failed.items())))
        return [answers[rank][1] for rank in range(self.size)]

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        rendezvous = Path(tempfile.mkdtemp(prefix="sl-ranks-")) / "store"
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            arguments = (theirs, rank, self.size, str(rendezvous), self._timeout)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def close(self) -> None:
        """End the ranks: gently by closing their pipes, else by force."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(2)
            if process.is_alive():
                process.kill()
                process.join()
        self._pipes, self._processes = [], []


def _serve(pipe: Connection, rank: int, size: int, rendezvous: str, timeout: float) -> None:
    """A rank: take work until the pipe is closed."""
    import os

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch

    from safelight.parallel import mesh

    torch.set_num_threads(1)
    mesh.join(torch.device("cpu"), rendezvous, rank, size, timeout)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            break
        try:
            pipe.send((True, function(rank, *arguments)))
        except Exception:  # noqa: BLE001  whatever it is, the test shall see it
            pipe.send((False, traceback.format_exc()))
    os._exit(0)  # peers may be gone: a graceful farewell could wait for them


@contextmanager
def pool(size: int) -> Iterator[RankPool]:
    ranks = RankPool(size)
    try:
        yield ranks
    finally:
        ranks.close()
