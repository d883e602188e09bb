"""The supervisor's side of one real process: run directory, control link, start and end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq

from safelight.config import EngineConfig
from safelight.wire import codec, links
from safelight.wire.child import write_config
from safelight.wire.messages import FromSupervisor, Ready, ToSupervisor

PATIENCE_S = 60  # a process that says nothing for so long has failed


def receive(socket: Any) -> list[bytes]:
    """The parts of the next message. Raises `TimeoutError` instead of hanging."""
    if not socket.poll(PATIENCE_S * 1000):
        raise TimeoutError(f"no message within {PATIENCE_S} s")
    return list(socket.recv_multipart())


class Supervised:
    """A process started with `python -m <module>`, as the supervisor starts it."""

    def __init__(self, module: str, run_dir: Path, context: zmq.Context[Any]) -> None:
        self.run_dir = run_dir
        self.context = context
        self.control = links.CONTROL.listen(context, run_dir)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", module),
                *("--run-dir", str(run_dir), "--parent", str(os.getpid())),
            ]
        )
        self._identity = b""

    def next_word(self) -> ToSupervisor:
        self._identity, data = receive(self.control)
        message: ToSupervisor = links.CONTROL.decode_up(data)
        return message

    def wait_ready(self) -> Ready:
        while not isinstance(message := self.next_word(), Ready):
            pass
        return message

    def say(self, message: FromSupervisor) -> None:
        self.control.send_multipart([self._identity, codec.encode(message)])

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.control.close()


@contextlib.contextmanager
def supervised(module: str, config: EngineConfig | None = None) -> Iterator[Supervised]:
    """A running process; killed at the end if it is still there."""
    with tempfile.TemporaryDirectory(prefix="sl-") as directory, zmq.Context() as context:
        run_dir = Path(directory)  # short: the path of a Unix socket has at most 107 bytes
        write_config(run_dir, config or EngineConfig())
        child = Supervised(module, run_dir, context)
        try:
            yield child
        finally:
            child.end()
