"""The file of results: one line a finished request, durable before the next one is counted."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import Literal

import msgspec

from safelight.errors import ConfigError
from safelight.output import writing

NAME = "results.jsonl"
_BEGIN = b'{"id":"'
"""Of every record, and so of one that was cut off."""


class File(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file that was made."""

    path: str
    """Relative to the results, if it is below them."""
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    code: str | None
    message: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a line. Of several with one id the last counts."""

    id: str
    line: int
    status: Literal["completed", "failed"]
    prompt: str
    model: str | None = None
    files: tuple[File, ...] = ()
    seconds: float
    """From its start to its end, waiting included."""
    error: Failure | None = None


class Results:
    """Appends to the file; held by one process at a time."""

    def __init__(self, directory: Path, *, resume: bool) -> None:
        """Raises `ConfigError` if there are results and `resume` is off, if another process writes
        them, or if they are something else."""
        self._directory = directory
        self._lock = threading.Lock()
        self.path = directory / NAME
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)
            writing.flush_directory(directory)
        except OSError as failure:
            raise ConfigError(f"Cannot write {self.path}: {failure.strerror}.") from failure
        try:
            self._hold()
            if not resume and os.fstat(self._file.fileno()).st_size:
                raise ConfigError(
                    f"{self.path} has results already. Give --resume to go on with what is not "
                    "done, or another --output-path."
                )
            records = self._records()
        except ConfigError:
            self._file.close()
            raise
        self.done = self._complete(records)
        """Ids of the lines that need nothing more."""

    def _hold(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as failure:
            raise ConfigError(f"Another process is writing {self.path}.") from failure
        if os.fstat(self._file.fileno()).st_nlink == 0:  # removed by the one that had it before
            raise ConfigError(f"Another process was writing {self.path}; try again.")

    def _records(self) -> list[Record]:
        """What is there; a last line that was cut off when a process was killed is removed."""
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        records = [self._record(*one) for one in enumerate(data[:whole].splitlines(), start=1)]
        rest = data[whole:]
        if not (rest.startswith(_BEGIN) or _BEGIN.startswith(rest)):
            raise self._foreign(len(records) + 1, "it has another form")
        if rest:
            self._file.truncate(whole)
        return records

    def _record(self, number: int, line: bytes) -> Record:
        try:
            return msgspec.json.decode(line, type=Record)
        except msgspec.DecodeError as failure:
            raise self._foreign(number, failure) from failure

    def _foreign(self, number: int, reason: object) -> ConfigError:
        return ConfigError(
            f"{self.path}, line {number}, is no result of a batch: {reason}. Choose another "
            "--output-path."
        )

    def _complete(self, records: list[Record]) -> set[str]:
        last = {record.id: record for record in records}
        return {
            record.id
            for record in last.values()
            if record.status == "completed"
            and all((self._directory / file.path).is_file() for file in record.files)
        }

    def add(self, record: Record) -> None:
        """Durable when it returns. Call it from any thread."""
        with self._lock:
            end = self._file.seek(0, os.SEEK_END)
            try:
                data = memoryview(msgspec.json.encode(record) + b"\n")
                while data:
                    data = data[self._file.write(data) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(end)  # no half line before the next one
                raise

    def close(self) -> None:
        """Nothing is left of a batch that never began."""
        if self._file.seek(0, os.SEEK_END) == 0:
            self.path.unlink(missing_ok=True)
        self._file.close()
