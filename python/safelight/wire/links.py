"""The links: who listens where, what may travel, and the limits of every socket.

A link has one listening end (ROUTER) in the process that owns it and connecting ends (DEALER) in
its peers, so either side may die and come back. Sockets are `ipc://` files in the private run
directory; a peer is known by the identity it connects with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from safelight.wire import messages
from safelight.wire.codec import Decoder

MAX_MESSAGE = 4 * 2**20  # bytes; the largest legal one is a Submit of prompts
HIGH_WATER = 10_000  # messages
LINGER_MS = 1_000


@dataclass(frozen=True)
class Link:
    """One link: its socket file and what either end may say."""

    name: str
    up: Any
    """Union the connecting end sends."""
    down: Any
    """Union the listening end sends."""
    decode_up: Decoder[Any] = field(init=False)
    decode_down: Decoder[Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "decode_up", Decoder(self.up))
        object.__setattr__(self, "decode_down", Decoder(self.down))

    def address(self, run_dir: Path) -> str:
        return f"ipc://{run_dir / self.name}.sock"

    def listen(self, context: zmq.Context[Any], run_dir: Path) -> Any:
        """The ROUTER end. Sending to an absent peer raises `zmq.ZMQError(EHOSTUNREACH)`."""
        socket = _limited(context.socket(zmq.ROUTER))
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.bind(self.address(run_dir))
        return socket

    def connect(self, context: zmq.Context[Any], run_dir: Path, identity: str) -> Any:
        """A DEALER end, known to the other side as `identity`."""
        socket = _limited(context.socket(zmq.DEALER))
        socket.setsockopt(zmq.IDENTITY, identity.encode())
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        socket.connect(self.address(run_dir))
        return socket


def _limited(socket: Any) -> Any:
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    return socket


REQUESTS = Link("requests", messages.ToScheduler, messages.FromScheduler)
RANKS = Link("ranks", messages.FromRank, messages.ToRank)
FRAMES = Link("frames", messages.Frames, messages.Stop)
MEDIA = Link("media", messages.FromOutput, messages.Stop)
CONTROL = Link("control", messages.ToSupervisor, messages.FromSupervisor)

MANAGER = "manager"
"""Identity of the request manager on the `requests` and `control` links."""


def rank_identity(group: int, rank: int) -> str:
    return f"{group}.{rank}"
