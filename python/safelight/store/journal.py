"""What happened to a job, event by event: a file of lines beside its outputs.

Written without waiting for the disk: it outlives every process, not a loss of power, after which
the job's row still says how it ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from safelight.request import State
from safelight.store.tables import Status

Kind = Literal["queued", "progress", "preview", "completed", "failed"]


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of a sample's running estimate."""

    sample: int
    """Index of the sample in its job."""
    number: int
    """Of the sample's previews, from 0."""
    step: int
    """Denoising steps that were done."""
    path: str
    """Absolute."""


class JobEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change of a job, with all that is known of it then."""

    number: int
    """1, 2, 3, …: no number of a job is left out, none is used twice."""
    kind: Kind
    at: float
    """Unix seconds."""
    status: Status
    progress: int
    """0 to 100, as `JobView.progress`."""
    steps_done: int
    steps_total: int
    attempt: int = 1
    stage: State = State.QUEUED
    """Of the sample that is furthest behind."""
    eta: float | None = None
    """Predicted seconds until the job is completed."""
    position: int | None = None
    """Samples that are served before its next one."""
    preview: Preview | None = None
    error_code: str | None = None
    error_message: str | None = None

    @property
    def last(self) -> bool:
        return self.kind in ("completed", "failed")


_line = msgspec.json.Decoder(JobEvent)


class Journal:
    """Appends to and reads one job's file. `path` is None where nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def append(self, event: JobEvent) -> None:
        """What cannot be written is lost for those who come later; nobody waits for it."""
        if self._path is not None:
            with contextlib.suppress(OSError), self._path.open("ab", buffering=0) as file:
                file.write(msgspec.json.encode(event) + b"\n")

    def read(self) -> Sequence[JobEvent]:
        """In order, all up to the first that is not whole or not the next: a killed writer, a full
        disk or a loss of power left it, and it is cut off with all behind it."""
        try:
            data = b"" if self._path is None else self._path.read_bytes()
        except OSError:
            return ()
        events, length = _whole(data)
        if self._path is not None and length < len(data):
            with contextlib.suppress(OSError), self._path.open("r+b") as file:
                file.truncate(length)
        return events


def _whole(data: bytes) -> tuple[list[JobEvent], int]:
    """The events that a file begins with, and how many bytes they take."""
    events: list[JobEvent] = []
    length = 0
    for line in data.splitlines(keepends=True):
        try:
            event = _line.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            break
        if not line.endswith(b"\n") or event.number != len(events) + 1:
            break
        events.append(event)
        length += len(line)
    return events, length
