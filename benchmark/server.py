"""A real `safelight serve`, started for a benchmark and ended by it in every case."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2
import psutil

from common import end
from safelight.config import EngineConfig

_STARTUP_SECONDS = 300.0
_SHUTDOWN_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1  # prctl(2)
_MODULES: Mapping[str, str] = {
    "safelight.entrypoint": "entrypoint",
    "safelight.scheduler": "scheduler",
    "safelight.worker": "worker",
    "safelight.launch.ranks": "torchrun",
    "safelight.output": "output",
    "serve": "supervisor",
}


class Server:
    """`safelight serve` on a free loopback port with an empty data directory. A context manager."""

    def __init__(self, config: EngineConfig, options: Sequence[str] = ()) -> None:
        self._config = config
        self._options = options
        self._directory = tempfile.TemporaryDirectory(prefix="safelight-bench-")
        self._log = Path(self._directory.name) / "log"
        self.base_url = f"http://127.0.0.1:{free_port()}"

    def __enter__(self) -> Self:
        model = self._config.model
        command = [
            *(sys.executable, "-m", "safelight", "serve"),
            *("--port", self.base_url.rpartition(":")[2]),
            *("--data-dir", str(Path(self._directory.name) / "data")),
            *("--model-path", model.model_path, "--device", model.device),
            *("--cpu-threads", str(model.cpu_threads), "--log-level", "warning"),
            *self._options,
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - there are no threads yet
            )
        try:
            self._await_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        try:
            end(self._process, _SHUTDOWN_SECONDS)
        finally:
            self._directory.cleanup()

    def processes(self) -> dict[str, psutil.Process]:
        """Every process of the server by its role."""
        supervisor = psutil.Process(self._process.pid)
        found: dict[str, psutil.Process] = {}
        for process in (supervisor, *supervisor.children(recursive=True)):
            name = role(process)
            found[name if name not in found else f"{name} {process.pid}"] = process
        return found

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time that every process, with its ended children (ffmpeg), has used so far."""
        return {name: cpu_seconds(process) for name, process in self.processes().items()}

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _STARTUP_SECONDS
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = self._log.read_text("utf-8", "replace").strip()
                raise RuntimeError(f"the server did not start:\n{words[-2000:]}")
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            return httpx2.get(f"{self.base_url}/health", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False


def role(process: psutil.Process) -> str:
    """What a process of the server is, from its command line."""
    words = process.cmdline()
    for module, name in _MODULES.items():
        if module in words:
            return name
    if any(word.endswith("janitor.py") for word in words):
        return "janitor"
    return process.name()


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    """In the child: the server must not outlive a benchmark that is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
