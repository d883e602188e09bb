"""A rank's loop: receive a plan, execute it, report. Every rank gets the same plans in order."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import zmq

from safelight import log
from safelight.models.family import Clip
from safelight.parallel.mesh import RanksDiverged
from safelight.request import SampleSpec
from safelight.wire import codec, links
from safelight.wire.child import Child
from safelight.wire.messages import Frames as FramesMessage
from safelight.wire.messages import (
    PeerRestarted,
    Plan,
    RankHello,
    Report,
    SampleFailure,
    Shutdown,
    Sound,
    Step,
    Stop,
    Timing,
)
from safelight.worker.executor import Executor, told
from safelight.worker.memory import SharedArray

if TYPE_CHECKING:
    from safelight.models.family import Family, Frames, Session
    from safelight.parallel.mesh import Mesh

logger = log.get(__name__)

MAX_SHOWN = 2**30
"""Bytes of the previews that a rank holds. Nobody says when one was opened, so each stays until its
sample's release."""


class RankLoop:
    """Owns the rank's sockets and the shared memory of delivered frames."""

    def __init__(
        self, child: Child, group: int, mesh: Mesh, family: Family, model: str = ""
    ) -> None:
        """`model` is the name it is served by."""
        self._group = group
        self._model = model
        self._mesh = mesh
        self._family = family
        identity = links.rank_identity(group, mesh.rank)
        self._plans = links.RANKS.connect(child.context, child.run_dir, identity)
        self._frames = links.FRAMES.connect(child.context, child.run_dir, identity)
        self._child = child
        self._shared: dict[str, list[SharedArray]] = {}
        self._shown: dict[str, list[SharedArray]] = {}
        """Previews."""
        self._executor = Executor(family, mesh, self._deliver, self._show)

    def run(self, load_seconds: float, timings: tuple[Timing, ...]) -> None:
        """Say hello, then execute plans until told to shut down."""
        poller = zmq.Poller()
        poller.register(self._plans, zmq.POLLIN)
        poller.register(self._child.control, zmq.POLLIN)
        stopping = False
        while (message := self._child.received()) is not None:
            # Restarts while it loaded concern nobody who has not said hello.
            stopping = stopping or isinstance(message, Stop)
        self._hello(load_seconds, timings)
        while not stopping or self._plans.poll(0):
            ready = dict(poller.poll())
            if self._plans in ready:
                plan = links.RANKS.decode_down(self._plans.recv())
                if isinstance(plan, Shutdown):
                    break
                self._execute(plan)
            elif self._child.control in ready:
                # Behind all plans that have come: other ranks execute them too, and wait for this
                # one in their collectives, whatever it hears meanwhile.
                message = self._child.received()
                stopping = stopping or isinstance(message, Stop)
                if isinstance(message, PeerRestarted) and message.process == "scheduler":
                    # The new one knows nothing of what this rank holds.
                    self._release((*self._executor.samples, *self._shared, *self._shown))
                    self._hello(load_seconds, timings)
        self._close()

    def _hello(self, load_seconds: float, timings: tuple[Timing, ...]) -> None:
        self._send(
            RankHello(
                group=self._group,
                rank=self._mesh.rank,
                world_size=self._mesh.layout.group_size,
                pid=os.getpid(),
                load_seconds=load_seconds,
                peak_memory=peak_memory(),
                timings=timings,
                weights=self._family.weights(),
                device=str(self._mesh.device),
                model=self._model,
            )
        )

    def _execute(self, plan: Plan) -> None:
        self._release(plan.release)
        started = time.monotonic()
        try:
            failures = self._executor.execute(plan)
        except RanksDiverged as end:
            if isinstance(end.failure, torch.OutOfMemoryError):
                # The others cannot say it: whose fault it is that the group ends.
                named = (told(name, end.failure) for name in self._executor.acting)
                self._report(plan, started, tuple(named))
                self._close()
            raise
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._report(plan, started, failures)

    def _report(self, plan: Plan, started: float, failures: tuple[SampleFailure, ...]) -> None:
        self._send(
            Report(
                group=self._group,
                rank=self._mesh.rank,
                seq=plan.seq,
                started=started,
                finished=time.monotonic(),
                failures=failures,
                steps=self._executor.steps(plan),
                traffic=self._mesh.traffic.take(),
                peak_memory=peak_memory(),
                previews=self._executor.previewing if isinstance(plan, Step) else 0.0,
                adapting=self._executor.adapting,
                layers=self._executor.layers,
            )
        )

    def _send(self, message: RankHello | Report) -> None:
        self._plans.send(codec.encode(message))

    def _release(self, samples: tuple[str, ...]) -> None:
        self._executor.release(samples)
        for name in samples:
            self._release_frames(name)
            _free(self._shown.pop(name, ()))

    def _deliver(self, spec: SampleSpec, made: Frames | Clip) -> None:
        """Hand frames to the output manager; the memory stays until the release."""
        self._release_frames(spec.id)
        held = self._shared.setdefault(spec.id, [])
        frames = made.frames if isinstance(made, Clip) else made
        held.append(SharedArray(spec.id, frames))
        sound = None
        if isinstance(made, Clip):
            held.append(SharedArray(f"{spec.id}, sound", made.sound))
            samples, channels = made.sound.shape
            sound = Sound(
                memory=held[-1].path, shape=(samples, channels), sample_rate=made.sample_rate
            )
        message = FramesMessage(
            sample=spec.id,
            attempt=spec.attempt,
            memory=held[0].path,
            shape=frames.shape,
            sound=sound,
            delivery=spec.delivery,
        )
        self._frames.send(codec.encode(message), zmq.DONTWAIT)

    def _show(self, session: Session, frame: Frames) -> None:
        """Hand a preview over; the memory stays until the release."""
        spec = session.spec
        held = sum(array.nbytes for arrays in self._shown.values() for array in arrays)
        if held + frame.nbytes > MAX_SHOWN:
            logger.info("a preview is left out: those that are held fill the memory", held=held)
            return
        shown = self._shown.setdefault(spec.id, [])
        shown.append(SharedArray(f"{spec.id}, preview", frame))
        message = FramesMessage(
            sample=spec.id,
            attempt=spec.attempt,
            memory=shown[-1].path,
            shape=frame.shape,
            delivery=spec.delivery,
            preview=len(shown) - 1,
            step=session.index,
        )
        self._frames.send(codec.encode(message), zmq.DONTWAIT)

    def _release_frames(self, sample: str) -> None:
        _free(self._shared.pop(sample, ()))

    def _close(self) -> None:
        for sample in (*self._shared, *self._shown):
            self._release((sample,))
        self._plans.close()
        self._frames.close()


def _free(arrays: Iterable[SharedArray]) -> None:
    for array in arrays:
        array.close()


def peak_memory() -> int:
    """Bytes: most allocated on CUDA, most resident on the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
