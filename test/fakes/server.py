"""A real `safelight serve`, with all its processes, for tests."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil

START_TIMEOUT = 120.0  # seconds; importing torch and diffusers takes ten on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One running server."""

    def __init__(self, data_dir: Path, *flags: str) -> None:
        self.port = free_port()
        self.data_dir = data_dir
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.log = data_dir.with_name(data_dir.name + ".log")
        command = [sys.executable, "-m", "safelight", "serve", "--port", str(self.port)]
        command += ["--data-dir", str(data_dir), "--device", "cpu", "--cpu-threads", "1", *flags]
        with self.log.open("ab") as log:
            self.process = psutil.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.client = httpx2.Client(base_url=self.base_url, timeout=60.0)

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Raises `AssertionError` with the log if it ends, or does not serve in time."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended:\n{self.log.read_text()}")
            try:
                if self.client.get("/health/ready").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"the server is not ready:\n{self.log.read_text()}")

    def children(self) -> dict[str, psutil.Process]:
        """Its processes by the module they run; the rank is `safelight.worker`."""
        found = {}
        for process in self.process.children(recursive=True):
            line = process.cmdline()
            if "-m" in line:
                found[line[line.index("-m") + 1]] = process
            elif any(part.endswith("janitor.py") for part in line):
                found["janitor"] = process
        return found

    @property
    def run_dir(self) -> Path:
        line = self.children()["safelight.scheduler"].cmdline()
        return Path(line[line.index("--run-dir") + 1])

    def create(self, **body: object) -> str:
        """Submit a video job; its id."""
        body = {"prompt": "a red circle moving left on a black background", **body}
        reply = self.client.post("/v1/videos", json=body)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["id"])

    def video(self, name: str) -> dict[str, object]:
        return dict(self.client.get(f"/v1/videos/{name}").json())

    def wait(self, name: str, timeout: float = 90.0) -> dict[str, object]:
        """Poll until the job has ended."""
        deadline = time.monotonic() + timeout
        while (video := self.video(name))["status"] in ("queued", "in_progress"):
            assert time.monotonic() < deadline, video
            time.sleep(0.05)
        return video

    def wait_progress(self, name: str, percent: int = 1) -> None:
        deadline = time.monotonic() + 60
        while int(str(self.video(name)["progress"])) < percent:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return int(self.process.wait(30))

    def close(self) -> None:
        self.client.close()
        if self.process.is_running():
            left = self.process.children(recursive=True)
            self.process.kill()
            psutil.wait_procs([self.process, *left], timeout=5)


@contextmanager
def serving(data_dir: Path, *flags: str) -> Iterator[Server]:
    """A server that is ready; ended in any case."""
    server = Server(data_dir, *flags)
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()
