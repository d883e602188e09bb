"""The output manager's socket loop: frames in, files written in a small thread pool, news out.

Sockets belong to the loop's thread; the pool hands its results over in a queue and wakes the loop
through an eventfd, so that everything waits in one poll.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import zmq

from safelight import log
from safelight.errors import GenerationFailed, SafelightError, WireError
from safelight.output import video
from safelight.output.delivery import deliver, failed, open_material
from safelight.wire import codec, links
from safelight.wire.child import Child
from safelight.wire.messages import Frames, FromOutput, MediaFailed, MediaReady, Stop

logger = log.get(__name__)

_MAX_WORKERS = 4


class _Head(msgspec.Struct):
    """What must be legible in a `Frames` message to say whose it was."""

    sample: str
    attempt: int


class OutputProcess:
    """Owns the listening end of `frames` and the connecting end of `media`."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._frames = links.FRAMES.listen(child.context, child.run_dir)
        self._media = links.MEDIA.connect(child.context, child.run_dir, "output")
        self._encoder = video.Encoder()
        self._pool = ThreadPoolExecutor(
            min(_MAX_WORKERS, len(os.sched_getaffinity(0))), thread_name_prefix="encode"
        )
        self._results: queue.SimpleQueue[FromOutput] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._pending = 0
        self._signalled = threading.Event()
        self._poller = zmq.Poller()
        for source in (self._frames, child.control, self._wake):
            self._poller.register(source, zmq.POLLIN)

    def run(self) -> None:
        """Serve until the supervisor says stop or SIGTERM comes, then finish what is here."""
        # Ctrl-C goes to every process of the terminal; only the supervisor acts on it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_signal)
        self._child.ready()
        grace = None
        while grace is None:
            ready = dict(self._poller.poll())
            if self._frames in ready:
                self._take_frames()
            self._send_results()
            grace = self._asked_to_stop()
        self._finish(time.monotonic() + grace)
        self._close()

    def _on_signal(self, *_: object) -> None:
        self._signalled.set()
        os.eventfd_write(self._wake, 1)

    def _asked_to_stop(self) -> float | None:
        """Seconds of grace when the supervisor or a signal said stop, else None."""
        if self._signalled.is_set():
            return self._child.config.runtime.shutdown_grace
        while (message := self._child.received()) is not None:
            if isinstance(message, Stop):
                return message.grace
        return None

    def _take_frames(self) -> None:
        """Take every message that has arrived."""
        while True:
            try:
                data = self._frames.recv_multipart(zmq.DONTWAIT)[-1]
            except zmq.Again:
                return
            try:
                self._accept(links.FRAMES.decode_up(data))
            except WireError as failure:
                self._refuse(data, failure)

    def _accept(self, message: Frames) -> None:
        try:
            # Opened now, not in the pool: the descriptor outlives the rank, its path does not.
            material = open_material(message)
        except GenerationFailed as failure:
            self._send(failed(message.sample, message.attempt, failure, message.preview))
            return
        self._pending += 1
        future = self._pool.submit(deliver, message, material, self._encoder)
        future.add_done_callback(lambda done: self._deliver_result(message, done))

    def _deliver_result(self, message: Frames, done: Future[FromOutput]) -> None:
        """In a pool thread: hand the result to the loop. An unforeseen error fails its sample."""
        if done.cancelled():  # the grace is over and the process is leaving
            return
        error = done.exception()
        if error is None:
            self._results.put(done.result())
        else:
            logger.error("encoding failed", sample=message.sample, exc_info=error)
            unforeseen = GenerationFailed(f"Encoding failed: {error!r:.300}", code="encode_failed")
            self._results.put(failed(message.sample, message.attempt, unforeseen, message.preview))
        os.eventfd_write(self._wake, 1)

    def _refuse(self, data: bytes, failure: SafelightError) -> None:
        """A message that is no `Frames`: fail the sample it names, if it names one."""
        logger.warning("refused a message", reason=failure.message)
        try:
            head = msgspec.msgpack.decode(data, type=_Head)
        except msgspec.DecodeError:
            return
        refused = GenerationFailed(failure.message, code="bad_frames")
        self._send(failed(head.sample, head.attempt, refused))

    def _send_results(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return
        while not self._results.empty():
            self._pending -= 1
            self._send(self._results.get())

    def _send(self, message: FromOutput) -> None:
        if isinstance(message, MediaReady):
            logger.debug("wrote", sample=message.sample, path=message.path, bytes=message.nbytes)
        if isinstance(message, MediaFailed):
            logger.warning("failed", sample=message.sample, reason=message.message)
        try:
            self._media.send(codec.encode(message), zmq.DONTWAIT)
        except zmq.Again:
            # The manager has been gone for 10,000 messages; it asks again when it is back.
            logger.error("the manager does not listen", sample=message.sample)

    def _finish(self, deadline: float) -> None:
        """Write what has arrived until `deadline`, then end what still runs."""
        self._take_frames()
        self._send_results()
        while self._pending and (left := deadline - time.monotonic()) > 0:
            if not self._wake_poller(left):
                break
            self._send_results()
        if self._pending:
            logger.warning("stopped before everything was written", samples=self._pending)
            self._encoder.stop()
        self._pool.shutdown(cancel_futures=True)

    def _wake_poller(self, seconds: float) -> bool:
        """Whether a result came within `seconds`."""
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        return bool(poller.poll(max(1, int(seconds * 1000))))

    def _close(self) -> None:
        self._frames.close()
        self._media.close()
        # `_wake` stays open: a late SIGTERM must find it.
