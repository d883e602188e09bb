"""One server per data directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from safelight.errors import ConfigError


class DirectoryLock:
    """An exclusive `flock(2)` on `<directory>/lock`; the kernel drops it when the process ends."""

    def __init__(self, directory: Path) -> None:
        """Raises `ConfigError` naming the holder if another process has it."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / "lock").open("a+", encoding="ascii")
        except OSError as failure:
            raise ConfigError(
                f"Cannot write to the data directory {directory}: {failure.strerror}.",
                param="data_dir",
            ) from failure
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as failure:
            holder = self._holder()
            self._file.close()
            raise ConfigError(
                f"The data directory {directory} is in use by another Safelight server"
                f"{holder}. Stop it, or choose another directory with --data-dir.",
                param="data_dir",
            ) from failure
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def _holder(self) -> str:
        self._file.seek(0)
        pid = self._file.read().strip()
        return f" (process {pid})" if pid else ""

    def release(self) -> None:
        self._file.close()
