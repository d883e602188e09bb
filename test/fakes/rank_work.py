"""Work for `fakes.ranks`: functions that run on every rank."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from safelight.parallel.layout import Layout
from safelight.parallel.mesh import Mesh, RanksDiverged

CPU = torch.device("cpu")


def gather(rank: int, layout: Layout, axis: str) -> tuple[list[float], dict[str, int]]:
    """Every rank's number along an axis, and the bytes that took."""
    mesh = Mesh.create(layout, CPU)
    parts = mesh.gather(torch.full((3,), float(rank)), axis)
    return [float(part[0]) for part in parts], mesh.traffic.take()


def fail(rank: int, layout: Layout, failing: tuple[int, ...]) -> str:
    """What `together` makes of a failure on the ranks `failing`."""
    mesh = Mesh.create(layout, CPU)
    try:
        with mesh.together():
            if rank in failing:
                raise ValueError("as told")
        return "fine"
    except RanksDiverged:
        return "diverged"
    except ValueError:
        return "agreed"


def timeouts(rank: int, layout: Layout) -> set[float]:
    """Seconds that this rank waits in the collectives of every group, and in those of the sequence
    as diffusers has it."""
    mesh = Mesh.create(layout, CPU)
    assert mesh.axes is not None
    groups = [*mesh.groups, mesh.axes["ring", "ulysses"]._flatten().get_group()]
    backends = [group._get_backend(CPU) for group in groups]
    return {backend.options._timeout.total_seconds() for backend in backends}


def time_out_together(rank: int) -> str:
    """What `together` makes of a collective that timed out on all ranks alike."""
    mesh = Mesh.create(Layout(cfg=2), CPU)
    group = mesh.group("cfg")
    _set_pg_timeout(timedelta(seconds=1), group)
    try:
        with mesh.together():
            # A message that nobody sends.
            dist.recv(torch.empty(1), group=group, group_src=1 - rank)
    except RanksDiverged as end:
        return str(end)
    except RuntimeError:
        return "a sample failed"
    return "fine"


def meet(rank: int, done: Path) -> bool:
    """Whether rank 0 had done work of its own when this rank went on; it makes the file `done`."""
    mesh = Mesh.create(Layout(ulysses=2), CPU)
    if rank == 0:
        time.sleep(1.0)
        done.touch()
    mesh.meet()
    return done.exists()


def fail_plan(rank: int) -> str:
    """What `together` makes of the same failure in different plans."""
    mesh = Mesh.create(Layout(ulysses=2), CPU)
    try:
        with mesh.together(plan=rank):
            raise ValueError("as told")
    except RanksDiverged:
        return "diverged"
    except ValueError:
        return "agreed"
