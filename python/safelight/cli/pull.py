"""`safelight pull`: fetches a model from the hub, so that it is there without a network."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from safelight.cli.display import stderr_console
from safelight.errors import ConfigError
from safelight.models import checkpoint, hub

_INTERRUPTED = 130


def pull(model: str, revision: str | None) -> int:
    """Download what is missing of `model`, check it, print where it is; 0."""
    if not hub.is_id(model):
        raise ConfigError(f"'{model}' is not a model on the hub: organisation/name is needed.")
    with downloading(model) as on_progress:
        directory = hub.fetch(model, revision, on_progress)
    checkpoint.verify(directory, trust_remote_code=True)
    print(directory)
    return 0


@contextmanager
def downloading(model: str) -> Iterator[hub.Progress]:
    """A progress bar in bytes, where there is a terminal. Ctrl-C ends the command at once.

    The threads that download would go on to the end of their files; what they have is continued
    the next time.
    """
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = stderr_console()
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

    def on_interrupt(number: int, frame: object) -> None:
        bar.stop()
        os._exit(_INTERRUPTED)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        with bar:
            task = bar.add_task(model, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total or None)
    finally:
        signal.signal(signal.SIGINT, previous)
