"""The scheduler's socket loop: messages in, `Core.handle`, commands out. Blocks when idle."""

from __future__ import annotations

import time

import zmq

from safelight import log
from safelight.errors import WireError
from safelight.scheduler.core import Command, Core, ToGroup, ToManager, ToSupervisor
from safelight.wire import codec, links
from safelight.wire.child import Child
from safelight.wire.messages import PeerRestarted, Stop

logger = log.get(__name__)


class SchedulerProcess:
    """Owns the sockets of the `requests` and `ranks` links."""

    def __init__(self, child: Child) -> None:
        self._child = child
        # Plans are numbered from the clock, so that no earlier scheduler can have used a number.
        self._core = Core(
            child.config.scheduling,
            child.config.runtime.step_timeout,
            first_seq=time.monotonic_ns() // 1000,
        )
        self._requests = links.REQUESTS.listen(child.context, child.run_dir)
        self._ranks = links.RANKS.listen(child.context, child.run_dir)
        self._poller = zmq.Poller()
        for socket in (self._requests, self._ranks, child.control):
            self._poller.register(socket, zmq.POLLIN)

    def run(self) -> None:
        """Serve until the supervisor says stop."""
        self._child.ready()
        while True:
            ready = dict(self._poller.poll(self._timeout_ms()))
            if self._child.control in ready and self._control():
                break
            if self._ranks in ready:
                self._drain(self._ranks, links.RANKS)
            if self._requests in ready:
                self._drain(self._requests, links.REQUESTS)
            deadline = self._core.deadline()
            if deadline is not None and deadline <= (now := time.monotonic()):
                self._execute(self._core.tick(now))
        self._execute(self._core.shutdown())
        self._requests.close()
        self._ranks.close()

    def _timeout_ms(self) -> int | None:
        deadline = self._core.deadline()
        if deadline is None:
            return None
        return max(1, int((deadline - time.monotonic()) * 1000) + 1)

    def _drain(self, socket: zmq.Socket[bytes], link: links.Link) -> None:
        """Take every message that has arrived."""
        while True:
            try:
                sender, data = socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                message = link.decode_up(data)
            except WireError as failure:
                logger.warning("refused a message", sender=sender.decode(), reason=str(failure))
                continue
            self._execute(self._core.handle(message, time.monotonic()))

    def _execute(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, ToGroup):
                data = codec.encode(command.message)
                for rank in range(command.world_size):
                    self._send(self._ranks, links.rank_identity(command.group, rank), data)
            elif isinstance(command, ToManager):
                self._send(self._requests, links.MANAGER, codec.encode(command.message))
            elif isinstance(command, ToSupervisor):
                self._child.control.send(codec.encode(command.message))

    def _send(self, socket: zmq.Socket[bytes], peer: str, data: bytes) -> None:
        """To a peer that may be gone: it learns the state again when it is back."""
        try:
            socket.send_multipart([peer.encode(), data], zmq.DONTWAIT)
        except zmq.ZMQError as failure:
            if failure.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            logger.debug("peer is not there", peer=peer)

    def _control(self) -> bool:
        """Whether the supervisor said stop."""
        message = self._child.received()
        if isinstance(message, PeerRestarted) and message.process.startswith("workers-"):
            group = int(message.process.removeprefix("workers-"))
            self._execute(self._core.lost(group, time.monotonic()))
        return isinstance(message, Stop)
