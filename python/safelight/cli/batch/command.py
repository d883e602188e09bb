"""`safelight batch`: many requests from a file, with a file of results, to be gone on with."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from safelight.cli.batch import lines
from safelight.cli.batch.backend import Backend, Lost, Made
from safelight.cli.batch.lines import Format, Item
from safelight.cli.batch.results import Failure, File, Record, Results
from safelight.cli.generate import INTERRUPTED
from safelight.config import EngineConfig
from safelight.errors import ConfigError, Overloaded, SafelightError, Unavailable

if TYPE_CHECKING:
    from safelight.cli.display import Tally

MAX_SHOWN = 20  # failures in the report
_PATIENCE = 1.0  # seconds before a server that is not there is asked again, then twice as long, …
_MAX_PATIENCE = 60.0


class BatchOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `batch` takes besides the engine's configuration and what a line may say."""

    input: Annotated[
        str, Meta(description="File of requests: .csv, .jsonl (OpenAI's Batch format too) or .txt.")
    ] = ""
    input_format: Annotated[
        Format | None, Meta(description="How to read it, where its name does not say.")
    ] = None
    output_path: Annotated[str, Meta(description="Directory for the files and results.jsonl.")] = (
        "outputs"
    )
    resume: Annotated[
        bool, Meta(description="Go on with an --output-path: skip what is done, retry the rest.")
    ] = False
    server: Annotated[
        str | None,
        Meta(description="URL of a running server, instead of an engine here; with --api-key."),
    ] = None
    in_flight: Annotated[
        int, Meta(ge=1, le=1000, description="Lines that are worked on at once.")
    ] = 16
    retries: Annotated[
        int, Meta(ge=0, le=1000, description="How often a busy or lost server is asked again.")
    ] = 10


def batch(config: EngineConfig, common: Mapping[str, Any], wanted: BatchOptions) -> int:
    """Make every line that is not done; 0 if all are, 1 if some failed, 130 after Ctrl-C.

    `common` are typed options that hold where a line says nothing else. Raises `ConfigError`,
    before anything runs, naming every line that cannot be used.
    """
    if not wanted.input:
        raise ConfigError("There is no input: give --input FILE.", param="input")
    source = Path(wanted.input).expanduser()
    items = lines.read(source, wanted.input_format, common)
    _warn_of_ignored(items)
    directory = Path(wanted.output_path).expanduser().absolute()
    with contextlib.ExitStack() as stack:
        results = stack.enter_context(contextlib.closing(Results(directory, resume=wanted.resume)))
        left = [item for item in items if item.id not in results.done]
        run = _Run(left, results, wanted, directory)
        status = 0
        try:
            if left:
                status = asyncio.run(run.over(_backend(config, wanted.server, source, left, stack)))
        except (OSError, Lost):
            print(run.summary(len(items)))
            raise
        print(run.summary(len(items)))
    return status


def _warn_of_ignored(items: Sequence[Item]) -> None:
    if names := sorted({name for item in items for name in item.ignored}):
        print(f"safelight: warning: ignored in bodies: {', '.join(names)}.", file=sys.stderr)


def _backend(
    config: EngineConfig,
    server: str | None,
    source: Path,
    items: Sequence[Item],
    stack: contextlib.ExitStack,
) -> Backend:
    """Who makes them; `stack` ends what was started for it."""
    if server is not None:
        from safelight.cli.batch.remote import RemoteServer

        return RemoteServer(server, config.server.api_key, source)
    from safelight.cli.batch.local import LocalEngine
    from safelight.cli.display import Startup, stderr_console

    backend = LocalEngine(config)
    lines.refuse(source, backend.check(items))
    with Startup(stderr_console()) as startup:
        stack.enter_context(backend.started(startup))
    return backend


class _Run:
    """The lines that are to be made, and what became of them."""

    def __init__(
        self, items: Sequence[Item], results: Results, wanted: BatchOptions, directory: Path
    ) -> None:
        self._items = items
        self._results = results
        self._wanted = wanted
        self._directory = directory
        self._failed: list[Record] = []
        self._made = 0

    async def over(self, backend: Backend) -> int:
        """Make them all; the exit status."""
        loop = asyncio.get_running_loop()
        # A thread waits for each of an engine's jobs.
        loop.set_default_executor(ThreadPoolExecutor(self._wanted.in_flight + 4))
        with _interrupts(asyncio.current_task()):
            try:
                async with contextlib.AsyncExitStack() as stack:
                    stack.push_async_callback(backend.close)
                    await backend.open(self._items)
                    await self._all(backend)
            except asyncio.CancelledError:  # also of who was impatient, and pressed Ctrl-C again
                return INTERRUPTED
        return 1 if self._failed else 0

    async def _all(self, backend: Backend) -> None:
        from safelight.cli.display import Tally, stderr_console

        waiting = iter(self._items)
        with Tally(stderr_console(), len(self._items)) as tally:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._wanted.in_flight, len(self._items))):
                        group.create_task(self._work(waiting, backend, tally))
            except* (OSError, Lost) as failures:  # the first: the results cannot be written
                raise failures.exceptions[0] from None

    async def _work(self, waiting: Iterator[Item], backend: Backend, tally: Tally) -> None:
        for item in waiting:
            record = await self._record(item, backend)
            if record.error is None:
                self._made += 1
            else:
                self._failed.append(record)
            await asyncio.shield(asyncio.to_thread(self._results.add, record))
            tally.count(failed=len(self._failed))

    async def _record(self, item: Item, backend: Backend) -> Record:
        """Make one line; what is to be told of it, whatever came of it."""
        start = time.monotonic()
        files: tuple[File, ...] = ()
        model, error = item.line.model, None
        try:
            made = await self._patiently(lambda: backend.make(item, self._directory))
            model = made.model
            files = tuple(
                msgspec.structs.replace(file, path=self._relative(file.path)) for file in made.files
            )
        except Lost:
            raise
        except SafelightError as failure:
            error = Failure(code=failure.code, message=failure.message)
        return Record(
            id=item.id,
            line=item.number,
            status="completed" if error is None else "failed",
            prompt=item.line.prompt,
            model=model,
            files=files,
            seconds=round(time.monotonic() - start, 3),
            error=error,
        )

    async def _patiently(self, make: Callable[[], Any]) -> Made:
        """Again after a while, as often as asked for, where that may help."""
        for attempt in range(self._wanted.retries):
            try:
                return await make()
            except Overloaded as failure:
                await asyncio.sleep(min(failure.retry_after_s, _MAX_PATIENCE))
            except Unavailable:  # its model may have to be loaded again
                await asyncio.sleep(min(_PATIENCE * 2.0 ** min(attempt, 10), _MAX_PATIENCE))
        return await make()

    def _relative(self, path: str) -> str:
        return str(Path(path).relative_to(self._directory))

    def summary(self, total: int) -> str:
        """What there is to say at the end: failures on standard error, one line on the other."""
        for record in self._failed[:MAX_SHOWN]:
            assert record.error is not None
            print(
                f"safelight: line {record.line} ({record.id}): {record.error.message}",
                file=sys.stderr,
            )
        if (more := len(self._failed) - MAX_SHOWN) > 0:
            print(f"safelight: and {more} more, see {self._results.path}", file=sys.stderr)
        before = total - len(self._items)
        left = len(self._items) - self._made - len(self._failed)
        return (
            f"{self._made} made, {len(self._failed)} failed, {before} done before, {left} left: "
            f"{self._results.path}"
        )


@contextlib.contextmanager
def _interrupts(task: asyncio.Task[Any] | None) -> Iterator[None]:
    """SIGINT and SIGTERM cancel `task`, so that what was begun is stopped and nothing is lost."""
    assert task is not None
    loop = asyncio.get_running_loop()
    names = (signal.SIGINT, signal.SIGTERM)
    for name in names:
        loop.add_signal_handler(name, task.cancel)
    try:
        yield
    finally:
        for name in names:
            loop.remove_signal_handler(name)
