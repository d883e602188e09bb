"""The engine: all processes behind one or several models, as a Python object.

::

    with safelight.Engine() as engine:
        job = engine.submit("a red circle moving left on a black background")
        print(job.wait().outputs[0].path)

`safelight generate` and `safelight serve` are this class with a command line around it. Without
HTTP the request manager runs here, in a thread; with it, in the entrypoint process. The processes
behind it are the same.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from safelight import config as configuration
from safelight.config import EngineConfig
from safelight.errors import (
    GenerationFailed,
    InvalidRequest,
    JobCancelled,
    StartupFailed,
    Unavailable,
)
from safelight.launch.supervisor import OnStarting, Supervisor
from safelight.manager.building import build_request
from safelight.manager.events import JobView
from safelight.manager.manager import RequestManager
from safelight.manager.media import Media, decode
from safelight.manager.models import check_memory
from safelight.manager.wanted import IN_FORCE, wanted
from safelight.models import sources
from safelight.models.card import ModelCard
from safelight.models.registry import load_cards
from safelight.request import Adapter, GenerationRequest, MediaFormat, Output
from safelight.wire.messages import GroupStatus, PlanDone

T = TypeVar("T")


class Job:
    """One submitted job."""

    def __init__(self, engine: Engine, request: GenerationRequest) -> None:
        self._engine = engine
        self.request = request
        """As accepted, with the seed that is used."""

    @property
    def id(self) -> str:
        return self.request.id

    def progress(self) -> JobView:
        """How far it is."""
        return self._engine._call(self._engine._jobs.job(self.id))

    def wait(self, timeout: float | None = None) -> JobView:
        """Block until it is finished.

        Raises `GenerationFailed` or `JobCancelled` with the reason, `TimeoutError` after `timeout`
        seconds, `Unavailable` if the engine stops first.
        """
        view = self._engine._call(self._engine._jobs.wait(self.id), timeout)
        if view.status == "completed":
            return view
        message = view.error_message or f"The job was {view.status}."
        error = JobCancelled if view.status == "cancelled" else GenerationFailed
        raise error(message, code=view.error_code)

    def cancel(self) -> None:
        """Stop it within one step. Does nothing if it has ended."""
        self._engine._call(self._engine._jobs.cancel(self.id))

    def subscribe(self) -> Iterator[JobView]:
        """Its state now, and again at every change, until it has ended."""
        stream = self._engine._jobs.subscribe(self.id)
        try:
            while True:
                try:
                    yield self._engine._call(anext(stream))
                except StopAsyncIteration:
                    return
        finally:
            self._engine._call(stream.aclose())


class Engine:
    """The processes that serve. A context manager; `start` and `close` also stand alone.

    Args:
        config: what to run; the built-in model by default.
        http: serve over HTTP too (`serve`); jobs then come from clients, not from `submit`.
        on_starting: called with (process, stage) while the processes start.
        on_plan: called with every executed plan: what ran together, and for how long.
    """

    def __init__(
        self,
        config: EngineConfig | None = None,
        *,
        http: bool = False,
        on_starting: OnStarting | None = None,
        on_plan: Callable[[PlanDone], None] | None = None,
    ) -> None:
        self.config, self.cards = load_cards(sources.prepare(config or EngineConfig()))
        check_memory(self.config)
        self._http = http
        self._on_starting = on_starting
        self._on_plan = on_plan
        self._loop = asyncio.new_event_loop()
        self._threads: list[threading.Thread] = []
        self._stopped: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._supervisor: Supervisor | None = None
        self._manager: RequestManager | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -------------------------------------------------------------------------------- in process

    def start(self) -> None:
        """Start the processes and wait until the model serves. Raises `StartupFailed`."""
        if self._http:
            raise StartupFailed("An HTTP engine is started by serve().")
        self._supervisor = supervisor = self._new_supervisor()
        try:
            # Jobs live as long as the engine: what must outlive it is served over HTTP.
            data = str(supervisor.run_dir / "data")
            storage = msgspec.structs.replace(self.config.storage, data_dir=data)
            config = msgspec.structs.replace(self.config, storage=storage)
            manager = RequestManager(config, self.cards, supervisor.run_dir, plans=self._on_plan)
            self._spawn("manager", self._loop.run_forever)
            self._call(manager.start())
            self._manager = manager
            started: concurrent.futures.Future[None] = concurrent.futures.Future()
            self._spawn("supervisor", self._supervise, supervisor, started)
            started.result()
        except BaseException:
            self.close()
            raise

    @property
    def card(self) -> ModelCard:
        """Of the first model."""
        return next(iter(self.cards.values()))

    def submit(
        self,
        prompt: str,
        *,
        model: str | None = None,
        round_size: bool = False,
        images: Sequence[Path | str | bytes] = (),
        mask: Path | str | bytes | None = None,
        seeds: Sequence[int] = (),
        sampling: Mapping[str, Any] | None = None,
        output: Output | None = None,
        n: int = 1,
        format: MediaFormat | None = None,
        compression: int | None = None,
        priority: int = 0,
        lora: Sequence[str | Mapping[str, Any] | Adapter] | None = None,
        destinations: Sequence[Path | str] | None = None,
    ) -> Job:
        """Accept a job; returns at once.

        Args:
            prompt: what to generate.
            model: name of one of several; by default the first that can do it.
            round_size: take the nearest size that the model can make, instead of refusing another.
            images: input pictures, as paths or as the bytes of files.
            mask: of the first picture: transparent, or white where nothing is transparent, is what
                is made anew.
            seeds: one for each output.
            sampling: any fields of `Sampling`; the model's defaults fill the rest.
            output: "image" or "video"; by default a video where the model makes them, or an image
                when `num_frames` is 1.
            n: outputs, with seeds `seed`, `seed + 1`, …
            format: `mp4`, or for images `png` (default), `jpeg`, `webp`.
            compression: 0 to 100, the quality of jpeg and webp (95 if left out) and of mp4 (50).
            priority: -100 to 100; higher goes first.
            lora: adapters of this job, as `"name"`, `"name:0.8"` or `{"name": …, "scale": …,
                "target": …}`; an empty list for none, by default what is in force.
            destinations: where to write the `n` files; by default they go with the engine.

        Raises `InvalidRequest` naming the field, `NotFound` for an unknown adapter, `Overloaded` if
        the queue is full.
        """
        media = read_media(images, mask, self.config.server.max_input_pixels)
        request = build_request(
            self._jobs.card(model, output, media),
            prompt,
            sampling or {},
            output=output,
            media=media,
            seeds=seeds,
            round_size=round_size,
            format=format,
            n=n,
            max_outputs=self.config.server.max_outputs,
            compression=compression,
            priority=priority,
            adapters=IN_FORCE if lora is None else wanted(lora),
        )
        paths = None if destinations is None else [Path(p).absolute() for p in destinations]
        view = self._call(self._jobs.submit(request, media=media, destinations=paths))
        return Job(self, view.request)

    def load(self, model: str) -> None:
        """Load a model; returns when it serves. Raises `ModelNotFound`, or `Unavailable` with the
        reason."""
        self._call(self._jobs.models.load(model))

    def unload(self, model: str) -> None:
        """Unload a model once what was accepted for it is done; the next job for it loads it."""
        self._call(self._jobs.models.unload(model))

    def groups(self) -> tuple[GroupStatus, ...]:
        """The worker groups and their ranks: device, memory, whether they serve."""
        return self._jobs.groups

    def close(self) -> None:
        """Stop everything; unfinished jobs are dropped. Safe to call twice."""
        if self._loop.is_closed():
            return
        if self._manager is not None:
            asyncio.run_coroutine_threadsafe(self._manager.close(), self._loop).result()
            self._manager = None
        if self._supervisor is not None:
            self._supervisor.request_stop()
        for thread in reversed(self._threads):
            if thread.name == "safelight-manager":
                self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
        if self._supervisor is not None:
            self._supervisor.close()  # does nothing if its thread has run
        self._loop.close()

    # --------------------------------------------------------------------------------- over HTTP

    def serve(self) -> int:
        """Serve until SIGINT or SIGTERM; returns the exit status. Belongs in the main thread.

        Raises `StartupFailed` if a process does not come up.
        """
        self._supervisor = supervisor = self._new_supervisor()
        self._loop.close()

        def stop(number: int, frame: object) -> None:
            supervisor.request_stop()

        previous = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            supervisor.start()
            return supervisor.run()
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)

    # ------------------------------------------------------------------------------------ inside

    def _new_supervisor(self) -> Supervisor:
        return Supervisor(
            self.config,
            http=self._http,
            on_starting=self._on_starting,
            on_restart=self._peer_restarted,
        )

    @property
    def _jobs(self) -> RequestManager:
        """The manager of a started engine. Raises `Unavailable`."""
        if self._manager is None:
            raise Unavailable("The engine is not running; use `with Engine() as engine:`.")
        return self._manager

    def _peer_restarted(self, process: str) -> None:
        if not self._http:
            self._call(self._jobs.peer_restarted(process))

    def _spawn(self, name: str, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name=f"safelight-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _supervise(self, supervisor: Supervisor, started: concurrent.futures.Future[None]) -> None:
        """The supervisor's thread. It outlives its children, which die with their parent thread."""
        status = 1
        try:
            supervisor.start()
            started.set_result(None)
            status = supervisor.run()
        except StartupFailed as failure:
            started.set_exception(failure)
        finally:
            if not started.done():
                started.set_exception(StartupFailed("The supervisor broke; see the log."))
            self._stopped.set_result(status)

    def _call(self, coroutine: Any, timeout: float | None = None) -> Any:
        """Run a coroutine of the manager; `Unavailable` if the engine stops meanwhile."""
        if self._stopped.done() or self._loop.is_closed():
            raise Unavailable("The engine has stopped.")
        future = asyncio.run_coroutine_threadsafe(_await(coroutine), self._loop)
        done, _ = concurrent.futures.wait(
            [future, self._stopped], timeout, return_when=concurrent.futures.FIRST_COMPLETED
        )
        if future in done:
            return future.result()
        future.cancel()
        if not done:
            raise TimeoutError(f"Not finished within {timeout:g} s.")
        failure = self._supervisor.failure if self._supervisor else None
        raise Unavailable(f"The engine has stopped. {failure or ''}".strip())


def read_media(
    images: Sequence[Path | str | bytes], mask: Path | str | bytes | None, max_pixels: int
) -> Media:
    """The input pictures of a job, decoded. Raises `InvalidRequest`, also for a file that cannot be
    read."""
    data = [("image", _read(one, "image")) for one in images]
    return decode(data, None if mask is None else _read(mask, "mask"), max_pixels=max_pixels)


def _read(source: Path | str | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).expanduser().read_bytes()
    except OSError as failure:
        raise InvalidRequest(
            f"The {name} {source} cannot be read: {failure.strerror}.", param=name
        ) from failure


async def _await(coroutine: Coroutine[Any, Any, T]) -> T:
    return await coroutine


def build_config(**values: Any) -> EngineConfig:
    """An `EngineConfig` from flat names: `build_config(model_path=..., port=0)`."""
    return configuration.build(values)
