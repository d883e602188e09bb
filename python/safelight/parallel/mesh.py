"""The ranks of one worker group: process groups along named axes.

The default process group carries tensors (NCCL on CUDA, gloo on the CPU); a second, gloo, carries
only the agreement on what to do when something fails.
"""

from __future__ import annotations

import contextlib
import datetime
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from safelight.errors import SafelightError
from safelight.parallel.layout import AXES, Layout
from safelight.parallel.traffic import Traffic

AGREEMENT_TIMEOUT = 10.0
"""Seconds in which the others must have failed too, if the failure is everybody's."""

PATIENCE = datetime.timedelta(days=1)
"""For a rank that has work of its own; that it hangs is noticed by the scheduler."""


class RanksDiverged(SafelightError):
    """A failure that is not every rank's: what has been sent and what is expected differ now."""

    def __init__(self, message: str, failure: BaseException) -> None:
        super().__init__(message)
        self.failure = failure
        """Of this rank."""


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
    groups: tuple[dist.ProcessGroup, ...] = ()
    """All that carry tensors of this rank."""
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
        groups = axes.get_all_groups()
        if layout.sp > 1:
            groups.append(axes["ring", "ulysses"]._flatten().get_group())
        tp = None
        if layout.tp > 1:
            shape = (world // layout.tp, layout.tp)
            tp = init_device_mesh(device.type, shape, mesh_dim_names=("rest", "tp"))["tp"]
            groups.append(tp.get_group())
        _limit(groups, device)
        timeout = datetime.timedelta(seconds=AGREEMENT_TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=timeout)
        return cls(layout, dist.get_rank(), device, axes, tp, control, tuple(groups))

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
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(ranks)]
        dist.all_gather(parts, tensor, group=group)
        self.traffic.all_gather(axis, tensor.nbytes, ranks)
        return parts

    @contextlib.contextmanager
    def together(self, plan: int = 0) -> Iterator[None]:
        """A block in which ranks may talk: what it raises, it raised on every rank alike.

        Otherwise some ranks wait for messages that others will not send, and the next collective
        would pair with the wrong one. Then `RanksDiverged` is raised, and the group must end.
        `plan` is the number of what they do.
        """
        try:
            yield
        except Exception as failure:
            if self.several:
                self._agree(plan, failure)
            raise

    def _agree(self, plan: int, failure: Exception) -> None:
        """Compare how far everybody got and with what it failed, and whether they can go on."""
        said = zlib.crc32(type(failure).__name__.encode())
        mine = torch.tensor([plan, self.traffic.collectives, said])
        everybody = [torch.empty_like(mine) for _ in range(self.layout.group_size)]
        words = f"rank {self.rank}: {failure!r:.400}"
        try:
            dist.all_gather(everybody, mine, group=self.control)
        except RuntimeError as silence:  # nobody else failed, or the connection is gone
            raise RanksDiverged(f"A rank failed alone; {words}", failure) from silence
        if any(not torch.equal(other, mine) for other in everybody):
            raise RanksDiverged(f"Ranks failed at different places; {words}", failure)
        try:
            self._probe()
        except RuntimeError as broken:
            raise RanksDiverged(f"Ranks cannot talk any more; {words}", failure) from broken

    def _probe(self) -> None:
        """Raise `RuntimeError` unless every group still works: a collective that timed out on all
        ranks alike fails on all of them ever after."""
        for group in self.groups:
            one = torch.ones(1, device=self.device)
            dist.all_reduce(one, group=group)
            if one.item() != dist.get_world_size(group):
                raise RuntimeError("a message went astray")

    def meet(self) -> None:
        """Wait for the others, however long: one of them had work of its own.

        Raises `RanksDiverged` if one has ended.
        """
        if self.control is None:
            return
        try:
            dist.monitored_barrier(self.control, timeout=PATIENCE)
        except RuntimeError as gone:
            raise RanksDiverged(f"A rank has ended; rank {self.rank}: {gone}", gone) from gone

    def close(self) -> None:
        """Leave, after everybody has had its last message: gloo resets the connections of those
        that still read from a rank that has left."""
        if self.control is not None:
            with contextlib.suppress(RuntimeError):  # a peer has died: nobody to wait for
                dist.barrier(group=self.control)
            dist.destroy_process_group()


def _limit(groups: Sequence[dist.ProcessGroup], device: torch.device) -> None:
    """Give groups the timeout of the default one: a device mesh makes them with torch's own, half
    an hour for gloo."""
    world = dist.group.WORLD
    assert world is not None
    timeout = world._get_backend(device).options._timeout
    for group in groups:
        _set_pg_timeout(timeout, group)


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
