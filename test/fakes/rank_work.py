"""Work for `fakes.ranks`: functions that run on every rank."""

from __future__ import annotations

import torch

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
