"""The order in which a rank does what it is told, over real sockets."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zmq

from fakes.simulation import spec
from safelight.parallel.layout import Layout
from safelight.parallel.mesh import Mesh, RanksDiverged
from safelight.wire import codec, links
from safelight.wire.messages import (
    Encode,
    FromSupervisor,
    PeerRestarted,
    RankHello,
    Report,
    Shutdown,
)
from safelight.worker import __main__ as worker
from safelight.worker import loop as worker_loop
from safelight.worker.loop import RankLoop


@dataclass
class FakeChild:
    """What a rank needs of its process."""

    run_dir: Path
    context: zmq.Context[Any]
    control: Any
    messages: list[FromSupervisor] = field(default_factory=list)

    def received(self) -> FromSupervisor | None:
        try:
            return links.CONTROL.decode_down(self.control.recv(zmq.DONTWAIT))
        except zmq.Again:
            return None


class FakeSession:
    steps = 4


class FakeFamily:
    """Encodes, or runs out of memory."""

    failure: BaseException | None = None

    def weights(self) -> dict[str, int]:
        return {"transformer": 8}

    def encode(self, sample: Any) -> None:
        if self.failure is not None:
            raise self.failure

    def begin(self, sample: Any, conditioning: None) -> FakeSession:
        return FakeSession()


@dataclass
class Stage:
    """A rank loop and the other ends of its sockets."""

    child: FakeChild
    scheduler: Any
    supervisor: Any
    frames: Any
    family: FakeFamily

    def loop(self, mesh: Mesh) -> RankLoop:
        loop = RankLoop(self.child, 0, mesh, self.family)  # type: ignore[arg-type]
        # Both ends know each other before anything is said.
        self.child.control.send(b"here")
        assert self.supervisor.recv_multipart()[1] == b"here"
        loop._plans.send(b"here")
        assert self.scheduler.recv_multipart()[1] == b"here"
        return loop

    def tell_rank(self, message: Any) -> None:
        self.scheduler.send_multipart([b"0.0", codec.encode(message)])

    def heard(self) -> Any:
        assert self.scheduler.poll(5000)
        return links.RANKS.decode_up(self.scheduler.recv_multipart()[1])


@pytest.fixture
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="sl-") as name, zmq.Context() as context:
        run_dir = Path(name)
        supervisor = links.CONTROL.listen(context, run_dir)
        control = links.CONTROL.connect(context, run_dir, "workers-0")
        scheduler = links.RANKS.listen(context, run_dir)
        frames = links.FRAMES.listen(context, run_dir)
        child = FakeChild(run_dir, context, control)
        yield Stage(child, scheduler, supervisor, frames, FakeFamily())
        for socket in (supervisor, control, scheduler, frames):
            socket.close(linger=0)


MESH = Mesh.single(torch.device("cpu"))


def test_plans_that_have_come_are_executed_before_a_new_scheduler_is_greeted(stage: Stage) -> None:
    """The other ranks execute them too, and would wait for this one."""
    loop = stage.loop(MESH)
    restarted = codec.encode(PeerRestarted(process="scheduler"))
    stage.tell_rank(Encode(seq=1, release=(), samples=(spec("a.0"),)))
    stage.tell_rank(Encode(seq=2, release=(), samples=(spec("b.0"),)))
    assert loop._plans.poll(5000)
    # What comes before the hello is drained there; this comes when the loop is about to read.
    loop._hello = _then_restarted(loop, stage, restarted)  # type: ignore[method-assign]
    thread = threading.Thread(target=loop.run, args=(0.0, ()))
    thread.start()
    heard = [stage.heard() for _ in range(4)]
    stage.tell_rank(Shutdown())
    thread.join(5)
    assert [type(message) for message in heard] == [RankHello, Report, Report, RankHello]
    assert loop._executor.samples == []


def test_previews_that_take_too_much_memory_are_left_out(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = np.zeros((1, 2, 2, 3), np.uint8)
    monkeypatch.setattr(worker_loop, "MAX_SHOWN", 2 * frame.nbytes)
    loop = stage.loop(MESH)
    for name in ("a.0", "b.0", "a.0"):  # together
        loop._show(SimpleNamespace(spec=spec(name), index=1), frame)  # type: ignore[arg-type]
    loop._release(("b.0",))
    loop._show(SimpleNamespace(spec=spec("a.0"), index=2), frame)  # type: ignore[arg-type]
    told = [links.FRAMES.decode_up(stage.frames.recv_multipart()[-1]) for _ in range(3)]
    assert [(one.sample, one.preview) for one in told] == [("a.0", 0), ("b.0", 0), ("a.0", 1)]
    assert not stage.frames.poll(0)
    loop._close()
    stage.child.control.close()


def test_previews_are_given_back_when_the_scheduler_has_forgotten_them(stage: Stage) -> None:
    loop = stage.loop(MESH)
    session = SimpleNamespace(spec=spec("a.0"), index=1)  # that has failed since: it is not held
    loop._show(session, np.zeros((1, 2, 2, 3), np.uint8))  # type: ignore[arg-type]
    memory = links.FRAMES.decode_up(stage.frames.recv_multipart()[-1]).memory
    assert Path(memory).exists()
    restarted = codec.encode(PeerRestarted(process="scheduler"))
    loop._hello = _then_restarted(loop, stage, restarted)  # type: ignore[method-assign]
    thread = threading.Thread(target=loop.run, args=(0.0, ()))
    thread.start()
    assert [type(stage.heard()) for _ in range(2)] == [RankHello, RankHello]
    gone = not Path(memory).exists()
    stage.tell_rank(Shutdown())
    thread.join(5)
    assert gone


def _then_restarted(loop: RankLoop, stage: Stage, restarted: bytes) -> Any:
    """The first hello, and behind it the news of another scheduler, before any plan is read."""
    original, first = loop._hello, [True]

    def hello(*arguments: Any) -> None:
        original(*arguments)
        if first:
            first.clear()
            stage.supervisor.send_multipart([b"workers-0", restarted])
            assert stage.child.control.poll(5000)

    return hello


def test_a_rank_that_runs_out_of_memory_alone_names_the_sample_and_ends(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = Mesh(Layout(ulysses=2), 0, torch.device("cpu"))
    stage.family.failure = torch.OutOfMemoryError("CUDA out of memory")

    def alone(self: Mesh, plan: int, failure: Exception) -> None:
        raise RanksDiverged("A rank failed alone", failure)

    monkeypatch.setattr(Mesh, "several", True)
    monkeypatch.setattr(Mesh, "_agree", alone)
    loop = stage.loop(mesh)
    stage.tell_rank(Encode(seq=1, release=(), samples=(spec("a.0"),)))
    with pytest.raises(RanksDiverged):
        loop.run(0.0, ())
    assert isinstance(stage.heard(), RankHello)
    report = stage.heard()
    assert [(f.sample, f.code) for f in report.failures] == [("a.0", "out_of_memory")]


def test_the_first_device_of_a_rank_is_set_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes no device without one."""
    chosen: list[int] = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    worker._mesh(None, None, torch.device("cuda"), 1)  # type: ignore[arg-type]
    assert chosen == [0]
