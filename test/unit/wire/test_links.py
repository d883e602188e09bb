"""Typed messages over real sockets; everything else is refused."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from fakes.simulation import spec
from safelight.errors import WireError
from safelight.wire import codec, links
from safelight.wire import messages as m


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    with zmq.Context() as made:
        yield made


def every_message() -> list[m.Message]:
    """One of each."""
    sample = spec("a.0")
    info = m.RankInfo(rank=0, pid=1, device="cpu", peak_memory=9, weights={"vae": 5})
    cost = m.RankCost(rank=0, seconds=1.0, traffic={"ring.send": 7}, peak_memory=9)
    return [
        m.Attach(),
        m.Submit(samples=(sample,)),
        m.Cancel(samples=("a.0",)),
        m.Written(samples=("a.0",)),
        m.Redeliver(samples=("a.0",)),
        m.Load(unfinished=1, backlog=2.0),
        m.GroupStatus(group=0, ready=True, detail=""),
        m.GroupStatus(group=0, ready=True, detail="", ranks=(info,)),
        m.PlanDone(group=0, op="step", samples=(), started=0.0, finished=1.0, ranks=(cost,)),
        m.RankHello(
            group=0,
            rank=1,
            world_size=2,
            pid=1,
            load_seconds=0.5,
            peak_memory=1,
            timings=(m.Timing(op="step", tokens=80, batch=1, seconds=0.1),),
            weights={"vae": 5},
            device="cuda:1",
        ),
        m.Encode(seq=1, release=(), samples=(sample,)),
        m.Step(seq=2, release=("b.0",), samples=("a.0",)),
        m.Decode(seq=3, release=(), samples=("a.0",)),
        m.Drop(seq=4, release=("a.0",)),
        m.Shutdown(),
        m.Report(group=0, rank=0, seq=1, started=0.0, finished=1.0),
        m.Report(
            group=0,
            rank=1,
            seq=1,
            started=0.0,
            finished=1.0,
            failures=(m.SampleFailure(sample="a.0", code="x", message=""),),
            traffic={"ring.send": 7},
            peak_memory=3,
        ),
        m.Hung(process="workers-0", detail="why"),
        m.Ready(process="x", pid=1),
        m.Stop(grace=1.0),
    ]


ALL = (links.REQUESTS, links.RANKS, links.FRAMES, links.MEDIA, links.CONTROL)


@pytest.mark.parametrize("message", every_message(), ids=lambda one: type(one).__name__)
def test_a_message_comes_back_equal_on_its_link_and_is_refused_on_the_others(
    message: m.Message,
) -> None:
    data = codec.encode(message)
    accepted = 0
    for decode in [d for link in ALL for d in (link.decode_up, link.decode_down)]:
        try:
            assert decode(data) == message
            accepted += 1
        except WireError:
            pass
    # `Stop` is the downward word of the links that have no other.
    assert accepted == (3 if isinstance(message, m.Stop) else 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        pickle.dumps({"type": "Cancel"}),
        codec.encode(m.Cancel(samples=("a",)))[:-1],
        b"\x82\xa4type\xa6Cancel\xa7samples\x01",
        b"\x83\xa4type\xa6Cancel\xa7samples\x90\xa1x\x01",
    ],
    ids=["empty", "zeros", "pickle", "cut", "wrong type", "unknown field"],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        links.REQUESTS.decode_up(data)


def test_both_ways_and_again_after_the_peer_is_new(
    context: zmq.Context[Any], tmp_path: Path
) -> None:
    listening = links.RANKS.listen(context, tmp_path)
    for _ in range(2):  # the second time as a new incarnation of the same rank
        peer = links.RANKS.connect(context, tmp_path, links.rank_identity(0, 1))
        peer.send(codec.encode(m.Report(group=0, rank=1, seq=1, started=0.0, finished=0.0)))
        sender, data = listening.recv_multipart()
        assert sender == b"0.1"
        assert links.RANKS.decode_up(data).rank == 1
        listening.send_multipart([sender, codec.encode(m.Shutdown())])
        assert links.RANKS.decode_down(peer.recv()) == m.Shutdown()
        peer.close(linger=0)
    listening.close(linger=0)


def test_sending_to_nobody_is_an_error_not_a_silence(
    context: zmq.Context[Any], tmp_path: Path
) -> None:
    listening = links.RANKS.listen(context, tmp_path)
    with pytest.raises(zmq.ZMQError) as failure:
        listening.send_multipart([b"0.0", b"x"])
    assert failure.value.errno == zmq.EHOSTUNREACH
    listening.close(linger=0)


def test_an_oversized_message_never_arrives(context: zmq.Context[Any], tmp_path: Path) -> None:
    listening = links.REQUESTS.listen(context, tmp_path)
    peer = links.REQUESTS.connect(context, tmp_path, links.MANAGER)
    peer.send(os.urandom(links.MAX_MESSAGE + 1))
    # The peer is cut off and comes back; what it says next is heard, the big one is not.
    for _ in range(50):
        peer.send(codec.encode(m.Attach()))
        if listening.poll(100):
            break
    else:
        pytest.fail("nothing arrives any more")
    _, data = listening.recv_multipart()
    assert links.REQUESTS.decode_up(data) == m.Attach()
    peer.close(linger=0)
    listening.close(linger=0)
