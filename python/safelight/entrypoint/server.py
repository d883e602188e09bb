"""uvicorn, run by a supervised process: own socket, own stop, no signals, no busy loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from safelight.errors import StartupFailed

KEEP_ALIVE_S = 75
BACKLOG = 2048
TICK_S = 1.0  # how often uvicorn renews its Date header


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `StartupFailed` with the reason."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # The protocol is named, as asyncio sets TCP_NODELAY only then; without it every answer
        # waits 40 ms for a delayed acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as failure:
        raise StartupFailed(f"Cannot listen on {host}: {failure.strerror}.") from failure
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as failure:
        listener.close()
        raise StartupFailed(
            f"Cannot listen on {host}:{port}: {failure.strerror}. Choose another --port, "
            "or 0 for a free one."
        ) from failure
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    """`http://host:port` of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HttpServer(uvicorn.Server):
    """Serves on `listener` until `stop` is called."""

    def __init__(self, app: FastAPI, on_listening: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self._on_listening = on_listening
        self._stopped = asyncio.Event()

    def stop(self, grace: float) -> None:
        """Accept nothing more; responses that are under way get `grace` seconds."""
        self.config.timeout_graceful_shutdown = grace  # type: ignore[assignment]  # any number
        self.should_exit = True
        self._stopped.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    async def main_loop(self) -> None:
        """uvicorn's own wakes ten times a second; an idle server should not."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), TICK_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None: the supervisor says over the control link when to stop."""
        yield
