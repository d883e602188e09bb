"""What a terminal shows while the engine starts and works; quiet where there is no terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_MAX_LABEL = 40  # characters of a prompt


def stderr_console() -> Console:
    """Progress goes to standard error, results to standard output."""
    return Console(file=sys.stderr, highlight=False, markup=False)


class Startup:
    """Shows the stage each process is in. Call it from any thread."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stages: dict[str, str] = {}
        self._status = console.status("starting")

    def __call__(self, process: str, stage: str) -> None:
        self._stages[process] = stage
        if self._console.is_terminal:
            self._status.update(", ".join(f"{name}: {what}" for name, what in self._stages.items()))

    def __enter__(self) -> Startup:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Nothing more is shown."""
        self._status.stop()


class _Shown:
    """Progress of these columns, while the block lasts and if there is a terminal."""

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        self._progress = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()


class Bars(_Shown):
    """One progress bar a job, with steps and the predicted time left."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            console,
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TextColumn("{task.fields[eta]}", markup=False),
            TimeElapsedColumn(),
        )

    def add(self, label: str) -> TaskID:
        return self._progress.add_task(shorten(label), total=None, status="", eta="")

    def update(self, task: TaskID, done: int, total: int, status: str, eta: float | None) -> None:
        left = f"{eta:.0f} s left" if eta else ""
        self._progress.update(task, completed=done, total=total or None, status=status, eta=left)


def shorten(text: str) -> str:
    """One line of at most 40 characters."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_LABEL else line[: _MAX_LABEL - 1] + "…"


class Tally(_Shown):
    """One bar for many requests: how many are done, how many of them failed, the time left."""

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(
            console,
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("", total=total, failed="")

    def count(self, *, failed: int) -> None:
        """One more is done; `failed` of all."""
        self._progress.update(self._task, advance=1, failed=f"{failed} failed" if failed else "")
