"""One supervised process: its command, its output, its end."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_LAST_WORDS = 5  # lines kept


@dataclass(frozen=True)
class Program:
    """What to run."""

    name: str
    module: str
    environment: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    """Whose worker group it is."""


class Process:
    """A running child: in a session of its own, its output read by the supervisor."""

    def __init__(self, program: Program, run_dir: Path) -> None:
        self.program = program
        self._popen = subprocess.Popen(
            [
                *(sys.executable, "-m", program.module),
                *("--run-dir", str(run_dir), "--parent", str(os.getpid())),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **program.environment},
            start_new_session=True,
        )
        self.pid = self._popen.pid
        self.started = time.monotonic()
        self.exit_fd = os.pidfd_open(self.pid)
        """Readable once the process has ended."""
        assert self._popen.stdout is not None
        self.output_fd = self._popen.stdout.fileno()
        os.set_blocking(self.output_fd, False)
        self.ready = False
        self.retired: float | None = None
        """When it must be gone (monotonic seconds), if it is to end and not to start again."""
        self.killed = False
        """Whether it was sent SIGKILL; with much memory to give back it may take a while to end."""
        self._words: collections.deque[str] = collections.deque(maxlen=_LAST_WORDS)
        self._partial = ""
        self._kept: list[str] = []

    @property
    def name(self) -> str:
        return self.program.name

    def read(self) -> list[str]:
        """Complete lines it printed since the last call; does not block.

        While it starts the last one is kept back: it may be why it ends, and is then told as that.
        """
        text = self._partial
        while True:
            try:
                data = os.read(self.output_fd, 65536)
            except BlockingIOError:
                break
            if not data:
                break
            text += data.decode(errors="replace")
        *lines, self._partial = text.split("\n")
        self._words.extend(lines)
        lines = self._kept + lines
        self._kept = [] if self.ready else lines[-1:]
        return lines if self.ready else lines[:-1]

    @property
    def last_words(self) -> str:
        """The last line it printed: with Python, the error."""
        lines = [line for line in (*self._words, self._partial) if line.strip()]
        return lines[-1].strip() if lines else ""

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal its whole process group."""
        self.killed = self.killed or number is signal.SIGKILL
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass

    def reap(self) -> int:
        """Its exit status, once `exit_fd` is readable; frees everything."""
        status = self._popen.wait()
        self.kill()  # what it may have left in its group
        self.read()
        os.close(self.exit_fd)
        assert self._popen.stdout is not None
        self._popen.stdout.close()
        return status


class Janitor:
    """The process that cleans up even if this one is killed; see `janitor.py`."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._watched: set[int] = set()
        self._start()

    def _start(self) -> None:
        script = Path(__file__).with_name("janitor.py")
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), str(self._run_dir)],
            stdin=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        self._watched.add(pid)
        self._say(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        self._watched.discard(pid)
        self._say(f"-{pid}\n")

    def _say(self, line: str) -> None:
        try:
            self._write(line)
        except BrokenPipeError:  # somebody ended it; another one takes over
            self._hang_up()
            self._start()
            self._write("".join(f"+{pid}\n" for pid in self._watched))

    def _write(self, text: str) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(text.encode())

    def close(self) -> None:
        """Have it end what is left and remove the run directory; returns when that is done."""
        self._say(".\n")
        self._hang_up()

    def _hang_up(self) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        self._popen.wait()
