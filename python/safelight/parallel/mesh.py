"""The ranks of one worker group: process groups along named axes.

The default process group carries tensors (NCCL on CUDA, gloo on the CPU); a second, gloo, carries
only the agreement on what to do when something fails.
"""

from __future__ import annotations

import contextlib
import datetime
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from safelight.errors import SafelightError
from safelight.parallel.layout import AXES, Layout
from safelight.parallel.traffic import Traffic

AGREEMENT_TIMEOUT = 10.0
"""Seconds in which the others must have failed too, if the failure is everybody's."""


class RanksDiverged(SafelightError):
    """A failure that is not every rank's: what has been sent and what is expected differ now."""


@dataclass(frozen=True)
class Mesh:
    """One replica's ranks. Without process groups where there is one rank."""

    layout: Layout
    rank: int
    """Within the group."""
    device: torch.device
    axes: DeviceMesh | None = None
    """Named as `AXES`."""
    tp_mesh: DeviceMesh | None = None
    """One axis, "tp"; None where text encoders are whole."""
    control: dist.ProcessGroup | None = None
    traffic: Traffic = field(default_factory=Traffic)

    @classmethod
    def single(cls, device: torch.device) -> Mesh:
        return cls(Layout(), 0, device)

    @classmethod
    def create(cls, layout: Layout, device: torch.device) -> Mesh:
        """The mesh over the initialised default group, whose size must be the layout's.

        All ranks must call it together.
        """
        world = dist.get_world_size()
        if world != layout.group_size:
            raise ValueError(f"{world} ranks for a layout of {layout.group_size}")
        axes = init_device_mesh(device.type, layout.shape, mesh_dim_names=AXES)
        tp = None
        if layout.tp > 1:
            shape = (world // layout.tp, layout.tp)
            tp = init_device_mesh(device.type, shape, mesh_dim_names=("rest", "tp"))["tp"]
        timeout = datetime.timedelta(seconds=AGREEMENT_TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=timeout)
        return cls(layout, dist.get_rank(), device, axes, tp, control)

    @property
    def several(self) -> bool:
        """Whether there is anybody to talk to."""
        return self.axes is not None

    def index(self, axis: str) -> int:
        """This rank's place along an axis of `AXES`."""
        return 0 if self.axes is None else self.axes.get_local_rank(axis)

    def group(self, axis: str) -> dist.ProcessGroup:
        """The process group along an axis of `AXES`."""
        assert self.axes is not None
        return self.axes.get_group(axis)

    def gather(self, tensor: torch.Tensor, axis: str) -> list[torch.Tensor]:
        """Equally shaped tensors of all ranks along `axis`, in the order of the axis."""
        group = self.group(axis)
        ranks = dist.get_world_size(group)
        parts = funcol.all_gather_tensor(tensor.contiguous()[None], 0, group)
        if isinstance(parts, funcol.AsyncCollectiveTensor):
            parts = parts.wait()
        self.traffic.all_gather(axis, tensor.nbytes, ranks)
        return list(parts.unbind(0))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block in which ranks may talk: what it raises, it raised on every rank alike.

        Otherwise some ranks wait for messages that others will not send, and the next collective
        would pair with the wrong one. Then `RanksDiverged` is raised, and the group must end.
        """
        try:
            yield
        except Exception as failure:
            if self.several:
                self._agree(failure)
            raise

    def _agree(self, failure: Exception) -> None:
        """Compare how far everybody got and with what it failed."""
        mine = torch.tensor([self.traffic.collectives, zlib.crc32(type(failure).__name__.encode())])
        everybody = [torch.empty_like(mine) for _ in range(self.layout.group_size)]
        try:
            dist.all_gather(everybody, mine, group=self.control)
        except RuntimeError as silence:  # nobody else failed, or the connection is gone
            raise RanksDiverged(f"Rank {self.rank} failed alone: {failure!r:.400}") from silence
        if any(not torch.equal(other, mine) for other in everybody):
            raise RanksDiverged(
                f"Ranks failed at different places; rank {self.rank}: {failure!r:.400}"
            )

    def close(self) -> None:
        """Leave, after everybody has had its last message: gloo resets the connections of those
        that still read from a rank that has left."""
        if self.control is not None:
            with contextlib.suppress(RuntimeError):  # a peer has died: nobody to wait for
                dist.barrier(group=self.control)
            dist.destroy_process_group()


def join(device: torch.device, rendezvous: str, rank: int, ranks: int, timeout: float) -> None:
    """Initialise the default process group: NCCL on CUDA, gloo on the CPU.

    The ranks meet in the file `rendezvous`, which must not exist before. `timeout` is in seconds:
    how long a rank waits for another in a collective.
    """
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=timeout),
    )
