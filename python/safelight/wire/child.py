"""The child's side of a supervised process: entering, reporting, being told to stop.

Every process but the supervisor starts with `Child.enter`. It dies with its parent
(PR_SET_PDEATHSIG, Linux `prctl(2)`), reads the configuration from the run directory, and talks to
the supervisor over the `control` link.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zmq

from safelight import log
from safelight.config import EngineConfig
from safelight.wire import codec, links
from safelight.wire.messages import FromSupervisor, Ready, Starting

CONFIG_FILE = "config.json"
_PR_SET_PDEATHSIG = 1


def die_with_parent(expected_parent: int | None = None) -> None:
    """Have the kernel SIGKILL this process when its parent ends; exit if that already happened."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if expected_parent is not None and os.getppid() != expected_parent:
        sys.exit(1)


def write_config(run_dir: Path, config: EngineConfig) -> None:
    (run_dir / CONFIG_FILE).write_bytes(msgspec.json.encode(config))


@dataclass
class Child:
    """A supervised process, seen from inside."""

    name: str
    run_dir: Path
    config: EngineConfig
    context: zmq.Context[Any]
    control: Any
    """The DEALER end of the control link; readable when the supervisor has said something."""

    @classmethod
    def enter(cls, name: str, run_dir: Path) -> Child:
        config = msgspec.json.decode((run_dir / CONFIG_FILE).read_bytes(), type=EngineConfig)
        log.configure(name, config.runtime.log_level)
        context: zmq.Context[Any] = zmq.Context()
        control = links.CONTROL.connect(context, run_dir, name)
        return cls(name, run_dir, config, context, control)

    def starting(self, stage: str) -> None:
        self.control.send(codec.encode(Starting(process=self.name, stage=stage)))

    def ready(self, detail: str = "") -> None:
        self.control.send(codec.encode(Ready(process=self.name, pid=os.getpid(), detail=detail)))

    def received(self) -> FromSupervisor | None:
        """What the supervisor said, or None; does not block."""
        try:
            data = self.control.recv(zmq.DONTWAIT)
        except zmq.Again:
            return None
        return links.CONTROL.decode_down(data)

    def close(self) -> None:
        self.control.close()
        self.context.term()


def arguments(name: str) -> Path:
    """Parse `--run-dir DIR --parent PID`, set the death signal, return the run directory."""
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True, help="pid that must be alive")
    parsed = parser.parse_args()
    die_with_parent(parsed.parent)
    return parsed.run_dir
