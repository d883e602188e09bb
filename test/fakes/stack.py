"""A whole HTTP server (real sockets, real manager, real store) over an `EnginePeer`."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fakes.engine_peer import CARD, EnginePeer
from safelight import config as configuration
from safelight.entrypoint.app import create_app
from safelight.entrypoint.server import HttpServer, address_of, listen
from safelight.manager.manager import RequestManager
from safelight.models.card import ModelCard

T = TypeVar("T")


@dataclass
class Stack:
    base_url: str
    peer: EnginePeer
    manager: RequestManager
    loop: asyncio.AbstractEventLoop

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the peer or the manager in their loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)


@contextmanager
def running(
    data: Path,
    *,
    automatic: bool = True,
    ready: bool = True,
    card: ModelCard = CARD,
    **settings: Any,
) -> Iterator[Stack]:
    """Serve from the data directory `data` until the block ends."""
    config = configuration.build(
        {"served_model_name": card.name, "data_dir": str(data), "port": 0, **settings}
    )
    run_dir = Path(tempfile.mkdtemp(prefix="sl-"))  # short, as socket paths must be
    started = threading.Event()
    found: list[Any] = []

    async def serve() -> None:
        peer = EnginePeer(run_dir, automatic=automatic, supervises=True)
        peer.ready = ready
        await peer.start()
        manager = RequestManager(config, {card.name: card}, run_dir)
        await manager.start()
        listener = listen(config.server.host, config.server.port)
        url = address_of(listener)
        server = HttpServer(create_app(manager, config), started.set)
        found.extend((Stack(url, peer, manager, asyncio.get_running_loop()), server))
        try:
            await server.serve(sockets=[listener])
        finally:
            await manager.close()
            await peer.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        if not started.wait(30):
            raise TimeoutError("the server did not start")
        stack, server = found
        yield stack
        stack.loop.call_soon_threadsafe(server.stop, 1.0)
    except BaseException:
        for _, server in [found] if len(found) == 2 else []:
            found[0].loop.call_soon_threadsafe(server.stop, 0.1)
        raise
    finally:
        thread.join(30)
        shutil.rmtree(run_dir, ignore_errors=True)
