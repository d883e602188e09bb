"""The supervisor: starts the processes in order, watches them, restarts what dies, stops them all.

One thread, one blocking poll over: the control link, every child's exit (a pidfd), every child's
output, and a pipe through which `request_stop` wakes it.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq

from safelight import log
from safelight.config import EngineConfig
from safelight.errors import StartupFailed, WireError
from safelight.launch.process import Janitor, Process, Program
from safelight.launch.programs import programs
from safelight.wire import codec, links
from safelight.wire.child import write_config
from safelight.wire.messages import (
    FromSupervisor,
    Hung,
    LoadModel,
    ModelState,
    PeerRestarted,
    Starting,
    Stop,
    ToSupervisor,
    UnloadModel,
)

logger = log.get(__name__)

RESTART_WINDOW = 300.0  # seconds
WRITING_SHARE = 0.3
"""Of the shutdown grace, kept for the output manager."""
OnStarting = Callable[[str, str], None]
"""Called with (process, stage) while processes start; stage "ready: ..." ends one."""


def make_run_dir() -> Path:
    """A private directory (0700) for sockets; short, as `ipc://` paths end at 107 bytes."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    usable = base and os.access(base, os.W_OK) and len(base) < 60
    return Path(tempfile.mkdtemp(prefix="safelight-", dir=base if usable else "/tmp"))


class Supervisor:
    """All processes of one engine. `start` and `run` share a thread; `request_stop` is for any."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        http: bool,
        on_starting: OnStarting | None = None,
        on_restart: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config
        # First, as it may refuse the layout: nothing is left behind then, least of all the API key.
        self._programs = programs(config, http=http)
        self.run_dir = make_run_dir()
        self._janitor = Janitor(self.run_dir)
        write_config(self.run_dir, config)
        self._on_starting = on_starting or (lambda process, stage: None)
        self._on_restart = on_restart or (lambda process: None)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._control = links.CONTROL.listen(self._context, self.run_dir)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._poller = zmq.Poller()
        self._poller.register(self._control, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._processes: dict[str, Process] = {}
        self._peers: set[str] = set()
        """Everybody who spoke on the control link: the processes, and ranks beyond the first."""
        self._restarts: dict[str, deque[float]] = defaultdict(deque)
        self._started = False
        self._asked: set[str] = set()
        """Models that jobs from before the start need: asked for while the others start."""
        self._loading: set[str] = set()
        """Models that are started at run time: one that fails is no reason to end."""
        self._stopping = False
        self._closed = False
        self._failure: str | None = None
        self.details: dict[str, str] = {}
        """What each process said when it became ready (the entrypoint: its address)."""

    # ---------------------------------------------------------------------------------- lifetime

    def start(self) -> None:
        """Start everything, stage by stage. Raises `StartupFailed`; then nothing is left."""
        try:
            for stage in self._programs.stages:
                for program in stage:
                    self._spawn(program)
                self._await_ready([program.name for program in stage])
            self._started = True
            for model in self._asked:
                self._load(model)
        except BaseException:
            self.close()
            raise

    def run(self) -> int:
        """Watch until `request_stop` or a crash loop; stop everything; return the exit status."""
        try:
            while not self._stopping and self._failure is None:
                self._turn(self._next_deadline())
                self._end_the_late()
        finally:
            if self._failure is not None:
                logger.error("giving up", reason=self._failure)
            self.close()
        return 0 if self._failure is None else 1

    def request_stop(self) -> None:
        """Ask `run` to stop; safe from any thread, from a signal handler, and after the end."""
        if not self._closed:
            os.write(self._wake_write, b"x")

    @property
    def failure(self) -> str | None:
        """Why the engine gave up; None as long as it has not."""
        return self._failure

    def close(self) -> None:
        """End every process, gently at first, and remove the run directory."""
        if self._closed:
            return
        self._stopping = True
        try:
            self._stop_all(time.monotonic())
        finally:
            self._janitor.close()
            self._control.close(linger=0)
            self._context.term()
            self._closed = True
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _stop_all(self, now: float) -> None:
        """In the order in which work flows, so that what is finished is still written."""
        grace = self.config.runtime.shutdown_grace
        for name in ("entrypoint", "scheduler", *self._worker_names()):
            self._stop(name, now + grace * (1 - WRITING_SHARE))
        self._stop("output", now + grace)
        for process in list(self._processes.values()):
            process.kill()
            self._await_exit(process.name, time.monotonic() + 5)

    def _worker_names(self) -> list[str]:
        return [name for name in self._processes if name.startswith("workers-")]

    # ---------------------------------------------------------------------------------- one turn

    def _turn(self, deadline: float | None) -> None:
        """Wait for something to happen, at most until `deadline`, and react to it."""
        timeout = None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000))
        events = dict(self._poller.poll(timeout))
        if self._wake_read in events:
            os.read(self._wake_read, 4096)
            self._stopping = True
        if self._control in events:
            self._receive()
        for process in list(self._processes.values()):
            if process.output_fd in events:
                self._echo(process)
            if process.exit_fd in events:
                self._ended(process)

    def _receive(self) -> None:
        while True:
            try:
                _, data = self._control.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                message = links.CONTROL.decode_up(data)
            except WireError as failure:
                logger.warning("refused a message", reason=str(failure))
                continue
            self._react(message)

    def _react(self, message: ToSupervisor) -> None:
        if isinstance(message, LoadModel):
            (self._load if message.wanted else self._tell_all)(message.model)
            return
        if isinstance(message, UnloadModel):
            self._unload(message.model)
            return
        self._peers.add(message.process)
        process = self._processes.get(message.process)
        if process is None:
            return
        if isinstance(message, Starting):
            self._on_starting(message.process, message.stage)
        elif isinstance(message, Hung):
            logger.error("a process hangs", process=message.process, detail=message.detail)
            process.kill()
        elif not process.ready:
            process.ready = True
            self._echo(process)
            self.details[message.process] = message.detail
            if self._stopping:
                return
            self._on_starting(message.process, f"ready: {message.detail}")
            if self._restarts[message.process]:
                self._broadcast(PeerRestarted(process=message.process))
            self._tell_if_loaded(process.program.model)

    def _echo(self, process: Process) -> None:
        for line in process.read():
            try:
                print(line, file=sys.stderr, flush=True)  # noqa: T201
            except BrokenPipeError:
                return  # nobody reads any more; that must not end the service

    # ------------------------------------------------------------------------- births and deaths

    def _spawn(self, program: Program) -> None:
        process = Process(program, self.run_dir)
        self._janitor.watch(process.pid)
        self._processes[program.name] = process
        self._poller.register(process.exit_fd, zmq.POLLIN)
        self._poller.register(process.output_fd, zmq.POLLIN)
        self._on_starting(program.name, "starting")

    def _bury(self, process: Process) -> int:
        """Reap an ended process; returns its exit status."""
        self._poller.unregister(process.exit_fd)
        self._poller.unregister(process.output_fd)
        self._echo(process)
        del self._processes[process.name]
        self._janitor.forget(process.pid)
        return process.reap()

    def _ended(self, process: Process) -> None:
        """A process ended by itself: start it again, unless it does so too often."""
        was_ready = process.ready
        status = self._bury(process)
        if self._stopping:
            return
        if process.name.startswith("workers-"):
            self._send("scheduler", PeerRestarted(process=process.name))
        if process.retired is not None:
            self._gone(process)
            return
        reason = process.last_words
        if not reason.startswith((f"{process.name}: ", f"{process.name}.")):  # one of ours says who
            ended = f"{process.name} ended with status {status}"
            reason = f"{ended}: {reason}" if reason else ended
        if process.program.model in self._loading:
            self._load_failed(process.program.model, reason)
            return
        if not was_ready and not self._restarts[process.name]:
            self._failure = reason
            return
        logger.error("a process ended", process=process.name, status=status, reason=reason)
        if self._too_often(process.name):
            self._failure = f"it keeps ending: {reason}"
            return
        self._spawn(process.program)

    def _too_often(self, name: str) -> bool:
        now = time.monotonic()
        times = self._restarts[name]
        times.append(now)
        while times[0] < now - RESTART_WINDOW:
            times.popleft()
        return len(times) > self.config.runtime.max_restarts

    def _next_deadline(self) -> float | None:
        """When the first of those that are starting, or are to end, is too late."""
        return min(filter(None, map(self._deadline_of, self._processes.values())), default=None)

    def _deadline_of(self, process: Process) -> float | None:
        if process.killed:
            return None  # nothing more can be done
        if process.retired is not None:
            return process.retired
        patience = self.config.runtime.startup_timeout
        return None if process.ready else process.started + patience

    def _end_the_late(self) -> None:
        now = time.monotonic()
        for process in self._processes.values():
            deadline = self._deadline_of(process)
            if deadline is not None and deadline < now:
                logger.error("was not ready, or gone, in time", process=process.name)
                process.kill()  # and, when that is noticed, start again or give up

    # ---------------------------------------------------------------------------- several models

    def _load(self, model: str) -> None:
        """Start the groups of a model that do not run; what runs already is none the worse."""
        missing = [p for p in self._programs.models[model] if p.name not in self._processes]
        if not self._started:
            self._asked.add(model)
        elif missing or any(process.retired is not None for process in self._running(model)):
            self._loading.add(model)
            for program in missing:
                self._restarts.pop(program.name, None)
                self._spawn(program)
        self._tell_if_loaded(model)

    def _tell_all(self, model: str) -> None:
        """Tell a manager that knows nothing whether `model` is there, and before, which others are:
        it must not load it beside them."""
        for one in self._programs.models:
            self._tell_if_loaded(one)
        if self._started:
            self._tell_if_unloaded(model)

    def _tell_if_loaded(self, model: str) -> None:
        mine = self._programs.models.get(model, ())
        if mine and all(self._is_ready(program.name) for program in mine):
            self._loading.discard(model)
            self._tell_manager(ModelState(model=model, state="loaded"))

    def _load_failed(self, model: str, reason: str) -> None:
        """One group could not start: the others of the model are of no use."""
        logger.error("a model could not be loaded", model=model, reason=reason)
        self._loading.discard(model)
        self._tell_manager(ModelState(model=model, state="failed", detail=reason))
        for process in self._running(model):
            process.retired = time.monotonic()
            process.kill()

    def _unload(self, model: str) -> None:
        """End the groups of a model, which hold nothing any more."""
        self._loading.discard(model)
        for process in self._running(model):
            process.retired = time.monotonic() + self.config.runtime.shutdown_grace
            for name in self._peers:
                if name == process.name or name.startswith(f"{process.name}."):
                    self._send(name, Stop(grace=self.config.runtime.shutdown_grace))
        self._tell_if_unloaded(model)

    def _gone(self, process: Process) -> None:
        """A process that was to end has ended; its model may be wanted again meanwhile."""
        if process.program.model in self._loading:
            self._restarts.pop(process.name, None)
            self._spawn(process.program)
        else:
            self._tell_if_unloaded(process.program.model)

    def _tell_if_unloaded(self, model: str) -> None:
        if not self._running(model):
            self._tell_manager(ModelState(model=model, state="unloaded"))

    def _running(self, model: str) -> list[Process]:
        return [p for p in self._processes.values() if p.program.model == model]

    def _tell_manager(self, message: ModelState) -> None:
        self._send(links.MANAGER, message)

    def _await_ready(self, names: Sequence[str]) -> None:
        deadline = time.monotonic() + self.config.runtime.startup_timeout
        while missing := [n for n in names if not self._is_ready(n)]:
            if self._failure is not None:
                raise StartupFailed(self._failure)
            if self._stopping:
                raise StartupFailed("stopped while starting")
            if time.monotonic() >= deadline:
                raise StartupFailed(
                    f"{', '.join(missing)} did not become ready within "
                    f"{self.config.runtime.startup_timeout:g} s (--startup-timeout)."
                )
            self._turn(deadline)

    def _is_ready(self, name: str) -> bool:
        process = self._processes.get(name)
        return process is not None and process.ready and process.retired is None

    def _stop(self, name: str, deadline: float) -> None:
        if name not in self._processes:
            return
        # Ranks hear it from the scheduler too, behind the last plan, and once is enough.
        if self._processes[name].ready:
            self._send(name, Stop(grace=max(0.1, deadline - time.monotonic())))
        else:
            self._processes[name].kill()  # it holds nothing yet
        if not self._await_exit(name, deadline):
            logger.warning("did not stop in time", process=name)
            self._processes[name].kill(signal.SIGTERM)
            self._await_exit(name, deadline + 1.0)

    def _await_exit(self, name: str, deadline: float) -> bool:
        while name in self._processes and time.monotonic() < deadline:
            self._turn(deadline)
        return name not in self._processes

    # ------------------------------------------------------------------------------------ telling

    def _broadcast(self, message: PeerRestarted) -> None:
        for name in self._peers:
            if name != message.process and not (
                name == "scheduler" and message.process.startswith("workers-")
            ):
                self._send(name, message)
        self._on_restart(message.process)

    def _send(self, name: str, message: FromSupervisor) -> None:
        try:
            self._control.send_multipart([name.encode(), codec.encode(message)], zmq.DONTWAIT)
        except zmq.ZMQError as failure:
            if failure.errno != zmq.EHOSTUNREACH:
                raise
